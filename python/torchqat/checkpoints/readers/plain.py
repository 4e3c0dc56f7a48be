"""Our own folders, the format ``safetensors``, versions 1 and 2, from what ``docs/formats.md`` says of them."""

import torch
from torch import Tensor

from torchqat.checkpoints.readers.fields import bit_fields, exponents, fp4_values, iq4_values, spread
from torchqat.checkpoints.readers.reading import LayerTensors
from torchqat.errors import UserError

LEAVES = ("codes", "scale", "zero_point", "offset", "outer_scale", "outer_offset")
_VERSIONS = (1, 2)
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16)


def check_version(config: dict) -> None:
    """Raises UserError where a ``quantization_config`` is of another version than those."""
    if config.get("version") not in _VERSIONS:
        raise UserError(f"A safetensors checkpoint must have version 1 or 2, but has {config.get('version')}.")


def dense(layer: LayerTensors, specs: dict) -> Tensor:
    """The weight ``[out, in]`` of one layer, in the dtype of its scale, or in float32 where scales are codes."""
    entry = specs.get(layer.name)
    if entry is None:
        raise UserError(f"The configuration must describe {layer.name}, whose codes the checkpoint has, but does not.")
    spec, scale = entry["weight"], layer["scale"]
    values = _codes(layer["codes"], spec, entry["shape"])
    if spec["grid"] == "asymmetric":
        values = values - spread(layer["zero_point"].float(), values.shape)
    values = values * spread(_effective(layer, "scale", "outer_scale", spec), values.shape)
    if spec["grid"] == "offset":
        values = values + spread(_effective(layer, "offset", "outer_offset", spec), values.shape)
    return values.to(scale.dtype if scale.dtype in _NUMBERS else torch.float32)


def _codes(stored: Tensor, spec: dict, shape: list[int]) -> Tensor:
    """The levels that codes stand for, float32."""
    if stored.dtype != torch.int32:
        return stored.float()
    fields = bit_fields(stored, spec["bits"])[:, : shape[1]]
    if spec["grid"] == "fp4_e2m1":
        return fp4_values(fields)
    if spec["grid"] == "iq4_nl":
        return iq4_values(fields)
    return (fields if spec["grid"] == "offset" else fields - (1 << (spec["bits"] - 1))).float()


def _effective(layer: LayerTensors, leaf: str, outer_leaf: str, spec: dict) -> Tensor:
    """Scales, or offsets, as they multiply: codes times what they are multiples of, float32."""
    stored = layer[leaf]
    is_exponent = spec["scale_dtype"].startswith("e8m0")
    inner = exponents(stored) if is_exponent else stored.float()
    return inner * spread(layer[outer_leaf].float(), inner.shape) if "outer_scale" in spec else inner
