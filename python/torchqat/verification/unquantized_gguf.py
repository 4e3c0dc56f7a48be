"""What GGUF files must hold beside their quantized layers, worked out from the model without the code that writes them."""

from collections.abc import Collection
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files
from torchqat.model.towers import beside_language_model
from torchqat.verification.rope_gguf import rope_factors
from torchqat.verification.unquantized import unquantized

_Types = gguf.GGMLQuantizationType
# What llama.cpp multiplies a norm's input by; transformers adds 1 to the weight when it runs.
_PASSED_OVER = {"bert": ("pooler.",)}  # vectors are made of hidden states
_NORM_OFFSETS = {"gemma": 1.0, "gemma2": 1.0, "gemma3": 1.0}


def unquantized_in_gguf(folder: Path, model: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Each such tensor of ``model`` in the type that the files in ``folder`` give it, float32, by its name in the model.

    Of a model that also reads images or sounds, files have the language model alone. ``names``: those that are wanted, of a
    model that is not prepared.
    """
    whole, beside = GgufFile(gguf_files(folder)), beside_language_model(model)
    outside = tuple(f"{name}." for name, module in model.named_modules() if id(module) in beside)
    outside += _PASSED_OVER.get(whole.architecture, ())
    expected = {
        name: tensor
        for name, tensor in unquantized(model).items()
        if not name.startswith(outside) and (names is None or name in names)
    }
    return {**rope_factors(whole, model), **as_stored(whole, expected)}


def as_stored(whole: GgufFile, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, which stay unquantized, by their names in the model, in the types that the file gives them; float32."""
    types = {tensor.name: tensor.tensor_type for _, tensor in whole.tensors}
    kinds = {of_model: types[name] for name, of_model in whole.names(list(tensors)).items() if name in types}
    found = {}
    for name, tensor in tensors.items():
        offset = _NORM_OFFSETS.get(whole.architecture, 0.0) if name.endswith("norm.weight") else 0.0
        found[name] = _stored(tensor.float().cpu() + offset, kinds.get(name, _Types.F32))
    return found


def _stored(values: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    data = gguf.quants.quantize(values.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(data, kind))).float()
