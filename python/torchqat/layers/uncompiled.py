"""What compiled code leaves to Python.

Apart from the rest, since whoever asks ``torch.compiler`` for it imports the compiler, which takes as long as torch itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer


@torch.compiler.disable
def see(layer: QuantLayer, x: Tensor) -> None:
    """Let ``layer`` take note of its input."""
    layer.see(x)
