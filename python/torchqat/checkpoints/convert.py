"""``convert``: from a trained model to the codes and scales that exporters write."""

from collections.abc import Iterator

import torch
from torch import nn

from torchqat._library import QuantizedWeights
from torchqat.checkpoints.dtype import check_dtype
from torchqat.errors import UserError
from torchqat.layers.adapters import check_adapters
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.wrapped import unwrapped

__all__ = ["QuantizedWeights", "convert", "convert_layers"]


def convert(model: nn.Module, dtype: torch.dtype | None = None) -> list[QuantizedWeights]:
    """The quantized weights of a prepared model, in model order.

    Each holds ``codes`` int8 ``[out, in]``, ``scale`` ``[out, groups]`` in the dtype that is stored, and ``zero_point``
    int8 or ``None``; ``dequantize()`` gives the weight that a reader computes.

    Args:
        model: A prepared model whose schedule, if it has one, has ended.
        dtype: dtype of the checkpoint; by default that of each weight.

    Raises:
        UserError: Nothing is quantized, adapters of peft act beside rounded weights, a weight is not finite, or ``dtype``
            cannot hold the scales exactly.
    """
    return list(convert_layers(model, dtype))


def convert_layers(model: nn.Module, dtype: torch.dtype | None = None, prefix: str = "") -> Iterator[QuantizedWeights]:
    """``convert``, one layer at a time: each is made when it is asked for. ``prefix`` goes before their names.

    What can be refused without a look at the numbers is refused before the first.
    """
    check_dtype(dtype)
    model = unwrapped(model)
    check_adapters(model)
    layers = [(name, layer) for name, layer in quant_layers(model) if layer.weight_spec is not None]
    if not layers:
        raise UserError("The model must have quantized layers, but has none; call torchqat.prepare first.")
    try:
        for name, layer in layers:
            layer.check_converts(prefix + name)
    except ValueError as error:
        raise UserError(str(error)) from error
    return (convert_layer(prefix + name, layer, dtype) for name, layer in layers)


def convert_layer(name: str, layer: QuantLayer, dtype: torch.dtype | None = None) -> QuantizedWeights:
    """``convert`` for one layer, called ``name`` in what comes back."""
    try:
        return layer.convert(name, dtype or layer.weight.dtype)
    except ValueError as error:
        raise UserError(str(error)) from error
