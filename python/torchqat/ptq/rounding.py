"""One layer onto its grid."""

import torch
from torch import Tensor

from torchqat._library import DTYPES, FLOAT, Initialize, InputStatistics, clipped_qparams, gptq, output_error
from torchqat.linear import QuantLinear
from torchqat.ops import choose_qparams, dequantize, quantize


@torch.no_grad()
def round_layer(layer: QuantLinear, statistics: InputStatistics | None, settings: Initialize) -> tuple[float, str]:
    """Choose codes and scales of ``layer`` at the width in force.

    Args:
        layer: Under GPTQ its master weight moves into the cells of the chosen codes; otherwise it stays as it is.
        statistics: Of its input; without them GPTQ and clipping fall back to the nearest level.
        settings: The recipe's ``initialize``.

    Returns:
        The squared error of its output per token (0 where nothing was chosen or measured), and a warning or ``""``.
    """
    spec = layer.weight_spec
    if spec is None or layer.weight_bits == FLOAT:
        return 0.0, ""
    hessian = statistics.hessian if statistics is not None and statistics.tokens else None
    if spec.scale == "minmax":
        return _loss(layer, hessian), ""
    if settings.rounding == "gptq" and hessian is not None:
        return _gptq(layer, statistics, hessian, settings)
    if settings.rounding == "clip" and hessian is not None:
        layer.set_qparams(*clipped_qparams(layer.weight, hessian, spec, layer.weight_bits))
    else:
        method = "minmax" if settings.rounding == "rtn" else "mse"
        importance = hessian.diagonal().contiguous() if hessian is not None and method == "mse" else None
        layer.set_qparams(
            *choose_qparams(
                layer.weight, spec.block, layer.weight_bits, spec.grid, method, DTYPES[spec.scale_dtype], importance
            )
        )
    return _loss(layer, hessian), ""


def _gptq(layer: QuantLinear, statistics: InputStatistics, hessian, settings: Initialize) -> tuple[float, str]:
    drift = statistics.drift
    rounded = gptq(
        layer.weight,
        hessian,
        layer.weight_spec,
        layer.weight_bits,
        damping=settings.damping,
        block_size=settings.block_size,
        order=settings.order,
        scale_search=settings.scale_search,
        correction=settings.correction if drift is not None else 0.0,
        drift=drift,
    )
    loss = output_error(layer.weight.float() - rounded.weight, hessian)
    layer.weight.copy_(rounded.target)
    layer.set_qparams(rounded.scale, rounded.zero_point)
    _keep_codes(layer, rounded.codes)
    return loss, rounded.warning


def _keep_codes(layer: QuantLinear, codes: Tensor) -> None:
    """A half-precision weight may have been rounded across a border: such elements go to the middle of their cell."""
    spec = layer.weight_spec
    scale, zero_point = layer.stored_qparams()
    moved = quantize(layer.weight, scale, zero_point, spec.block, *spec.quant_range(layer.weight_bits)) != codes
    if moved.any():
        layer.weight.copy_(torch.where(moved, dequantize(codes, scale, zero_point, spec.block), layer.weight.float()))


def _loss(layer: QuantLinear, hessian) -> float:
    if hessian is None:
        return 0.0
    return output_error((layer.weight - layer.quantized_weight()).float(), hessian)
