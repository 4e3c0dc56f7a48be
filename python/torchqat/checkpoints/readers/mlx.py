"""mlx-lm folders, dense by the two steps that MLX takes, each rounded to the dtype of the scales.

``tests/engines/test_mlx.py`` holds it against MLX itself, element by element.
"""

import torch
from torch import Tensor

from torchqat.checkpoints.readers.fields import bit_fields, exponents, fp4_values, spread
from torchqat.checkpoints.readers.reading import LayerTensors, Reading, read_layers
from torchqat.errors import UserError

_LEAVES = ("weight", "scales", "biases")


def quantized(tensors: dict[str, Tensor], config: dict) -> Reading:
    """Dense weights from the tensors of a checkpoint and its ``quantization``."""

    def dense(layer: LayerTensors) -> Tensor:
        scheme = config.get(layer.name, config)
        mode = scheme.get("mode", "affine")
        if mode not in _MODES:
            raise UserError(f"The mode of {layer.name} must be {', '.join(_MODES)}, but is {mode}.")
        fields = bit_fields(layer["weight"].view(torch.int32), scheme["bits"])
        return _MODES[mode](fields, layer)

    return read_layers(tensors, _LEAVES, ("scales", "biases"), dense)


def _affine(fields: Tensor, layer: LayerTensors) -> Tensor:
    scales, biases = (spread(layer[leaf], fields.shape) for leaf in ("scales", "biases"))
    return fields.to(scales.dtype) * scales + biases


def _mxfp4(fields: Tensor, layer: LayerTensors) -> Tensor:
    return fp4_values(fields) * spread(exponents(layer["scales"]), fields.shape)


def _mxfp8(fields: Tensor, layer: LayerTensors) -> Tensor:
    return _e4m3(fields) * spread(exponents(layer["scales"]), fields.shape)


def _nvfp4(fields: Tensor, layer: LayerTensors) -> Tensor:
    return fp4_values(fields) * spread(_e4m3(layer["scales"]), fields.shape)


def _e4m3(octets: Tensor) -> Tensor:
    return octets.to(torch.uint8).contiguous().view(torch.float8_e4m3fn).float()


_MODES = {"affine": _affine, "mxfp4": _mxfp4, "mxfp8": _mxfp8, "nvfp4": _nvfp4}
