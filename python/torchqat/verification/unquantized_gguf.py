"""What GGUF files must hold beside their quantized layers, worked out from the model without the code that writes them."""

from collections.abc import Collection
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf import ROPE_FACTORS, GgufFile, gguf_files
from torchqat.verification.unquantized import unquantized

_Types = gguf.GGMLQuantizationType
# What llama.cpp multiplies a norm's input by; transformers adds 1 to the weight when it runs.
_NORM_OFFSETS = {"gemma": 1.0}


def unquantized_in_gguf(folder: Path, model: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Each such tensor of ``model`` in the type that the files in ``folder`` give it, float32, by its name in the model.

    ``names``: those that are wanted, of a model that is not prepared.
    """
    whole, expected = GgufFile(gguf_files(folder)), unquantized(model)
    expected = {name: tensor for name, tensor in expected.items() if names is None or name in names}
    types = {tensor.name: tensor.tensor_type for _, tensor in whole.tensors}
    kinds = {of_model: types[name] for name, of_model in whole.names(list(expected)).items() if name in types}
    factors = _rope_factors(whole, model)
    found = {} if factors is None else {ROPE_FACTORS: factors}
    for name, tensor in expected.items():
        offset = _NORM_OFFSETS.get(whole.architecture, 0.0) if name.endswith("norm.weight") else 0.0
        found[name] = _stored(tensor.float().cpu() + offset, kinds.get(name, _Types.F32))
    return found


def _stored(values: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    data = gguf.quants.quantize(values.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(data, kind))).float()


def _rope_factors(whole: GgufFile, model: nn.Module) -> Tensor | None:
    """What the frequencies of the file's base must be divided by to be the model's; ``None`` when by nothing."""
    rotary = next((m for m in model.modules() if hasattr(m, "inv_freq")), None)
    if rotary is None:
        return None
    used = rotary.inv_freq.float().cpu()
    exponents = torch.arange(0, 2 * len(used), 2, dtype=torch.float32) / (2 * len(used))
    factors = 1.0 / float(whole.value("rope.freq_base")) ** exponents / used
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4) else factors
