"""GPTQ, AWQ, ModelOpt and our own folders, unpacked bit by bit from what their formats are documented to be.

Checked in turn against GPTQModel, which loads the first two (``make test-engines``); ModelOpt's against bytes worked out by
hand (``tests/qat/checkpoint/formats/test_modelopt.cpp``) and, once, against what the packing of ModelOpt 0.47 makes of
the same weight. Floats of 4 bits and scales that are exponents are read as ``docs/formats.md`` says.
"""

import torch
from torch import Tensor

from torchqat.checkpoints.readers import plain
from torchqat.checkpoints.readers.fields import bit_fields, exponents, fp4_values, spread
from torchqat.checkpoints.readers.reading import LayerTensors, Reading, read_layers

# Nibble i of an AWQ word holds this column of its eight.
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_GPTQ = ("qweight", "qzeros", "scales", "g_idx")
_MODELOPT = ("weight", "weight_scale", "weight_scale_2", "pre_quant_scale")


def unpack(tensors: dict[str, Tensor], format: str, config: dict) -> Reading:
    """Dense weights from the tensors of a checkpoint and its ``quantization_config``.

    ``format``: gptq, gptq_v2, awq, modelopt or safetensors.
    """
    if format == "modelopt":
        reading = read_layers(tensors, _MODELOPT, _MODELOPT[1:], _modelopt)
    elif format == "safetensors":
        plain.check_version(config)
        reading = read_layers(
            tensors, plain.LEAVES, plain.LEAVES[:1], lambda layer: plain.dense(layer, config["layers"])
        )
    elif format == "awq":
        reading = read_layers(tensors, _GPTQ[:3], _GPTQ[:3], _awq)
    else:
        offset = 1 if format == "gptq" else 0
        reading = read_layers(tensors, _GPTQ, _GPTQ, lambda layer: _gptq(layer, offset))
    return reading


def _gptq(layer: LayerTensors, offset: int) -> Tensor:
    words, scales, groups = layer["qweight"], layer["scales"], layer["g_idx"].long()
    bits = words.shape[0] * 32 // groups.numel()
    codes = bit_fields(words.t(), bits)  # [out, in]
    zeros = (bit_fields(layer["qzeros"], bits) + offset) % (1 << bits)  # [groups, out]
    return ((codes - zeros[groups].t()).float() * scales[groups].t().float()).to(scales.dtype)


def _awq(layer: LayerTensors) -> Tensor:
    scales = layer["scales"]
    codes, zeros = _awq_fields(layer["qweight"]), _awq_fields(layer["qzeros"])  # [in, out], [groups, out]
    group = codes.shape[0] // zeros.shape[0]
    zeros, steps = zeros.repeat_interleave(group, 0), scales.repeat_interleave(group, 0)
    return ((codes - zeros).float() * steps.float()).to(scales.dtype).t().contiguous()


def _awq_fields(words: Tensor) -> Tensor:
    nibbles = bit_fields(words, 4).reshape(words.shape[0], -1, 8)
    columns = torch.empty_like(nibbles)
    columns[..., list(_AWQ_COLUMNS)] = nibbles
    return columns.reshape(words.shape[0], -1)


def _modelopt(layer: LayerTensors) -> Tensor:
    """What multiplies an input: each column's part of it is scaled before, which is the same as that column scaled."""
    dense, scale = _modelopt_weight(layer), layer.get("pre_quant_scale")
    return dense if scale is None or bool((scale == 1).all()) else dense * scale


def _modelopt_weight(layer: LayerTensors) -> Tensor:
    weight, scale = layer["weight"], layer["weight_scale"]
    if scale.dtype == torch.float8_e4m3fn:  # NVFP4
        values = fp4_values(torch.stack([weight & 15, weight >> 4], -1).flatten(1))
        return _blockwise(values, scale.float()) * layer["weight_scale_2"]
    if scale.dtype == torch.uint8:  # MXFP8
        return _blockwise(weight.float(), exponents(scale))
    if weight.dtype == torch.uint8:
        codes = torch.stack([weight & 15, weight >> 4], 1).reshape(-1, weight.shape[1]).long()
        weight = codes - 16 * (codes > 7)  # two's complement
        layer["pre_quant_scale"]  # which engines ask for
    return _blockwise(weight.float(), scale.reshape(-1, 1) if scale.dim() == 1 else scale)


def _blockwise(values: Tensor, scale: Tensor) -> Tensor:
    """Each element times the scale of its block, rounded once to the dtype of the scale."""
    grid = scale.float().reshape(1, 1) if scale.dim() == 0 else scale.float()
    return (values * spread(grid, values.shape)).to(scale.dtype)
