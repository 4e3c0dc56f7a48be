"""transformers in this process: checkpoints as models that can be run and looked into."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat.data.batch import as_inputs
from torchqat.device import CPU, device_of
from torchqat.errors import UserError, first_line
from torchqat.model.placement import on_device
from torchqat.verification.engines.outputs import compared, in_half, outputs_of
from torchqat.verification.result import OutputAgreement

# Relative to the largest output: the weights are the same, and so are the operations.
_BOUND, _BOUND_IN_HALF = 1e-5, 2e-2


def load_in_transformers(folder: Path, device: torch.device = CPU) -> nn.Module:
    """The checkpoint as transformers loads it, its weights dense and its inputs unquantized, on ``device``.

    Raises:
        UserError: transformers cannot load the folder.
    """
    from torchqat.verification.engines.workers.transformers_worker import load

    try:
        return load(Path(folder)).to(device)
    except Exception as error:
        raise UserError(f"transformers could not load {folder}: {first_line(error)}") from error


@torch.no_grad()
def outputs_in_transformers(
    folder: Path, model: nn.Module, example: Any, device: torch.device | None = None
) -> OutputAgreement:
    """Compare the outputs of a checkpoint that writes no text with those of ``model``, both given ``example``.

    Args:
        folder: The checkpoint.
        model: What it is of.
        example: What both are given.
        device: Where both run; where ``model`` is when ``None``.

    Raises:
        UserError: There is no example, or transformers cannot load the folder or run it.
    """
    as_inputs(example)  # says so if there is none
    loaded = load_in_transformers(folder, device_of(model) if device is None else device)
    try:
        theirs = outputs_of(loaded, example)
    except Exception as error:
        raise UserError(f"transformers could not run {folder}: {first_line(error)}") from error
    bound = _BOUND_IN_HALF if in_half(model) or in_half(loaded) else _BOUND
    with on_device(model, device):
        ours = outputs_of(model, example)
    return compared("transformers", theirs, ours, bound, "the order of sums")
