"""One layer onto its grid."""

import torch
from torch import Tensor

from torchqat._library import FLOAT, Initialize, InputStatistics, clipped_qparams, gptq, output_error
from torchqat.layers.quant_layer import QuantLayer
from torchqat.ops import dequantize


@torch.no_grad()
def round_layer(
    layer: QuantLayer, statistics: InputStatistics | None, settings: Initialize, output_hessian: Tensor | None = None
) -> tuple[float, str]:
    """Choose codes and scales of ``layer`` at the width in force.

    Args:
        layer: Under GPTQ its master weight moves into the cells of the chosen codes; otherwise it stays as it is.
        statistics: Of its input; without them GPTQ and clipping fall back to the nearest level.
        settings: The recipe's ``initialize``.
        output_hessian: Float32 ``[out, out]``, how much the model's output depends on this layer's, where GPTQ
            is to see that (``output_gradients``).

    Returns:
        The squared error of its output per token (0 where nothing was chosen or measured), and a warning or ``""``.
    """
    spec = layer.weight_spec
    if spec is None or layer.weight_bits == FLOAT:
        return 0.0, ""
    hessian = statistics.hessian if statistics is not None and statistics.tokens else None
    if spec.finds_scale:
        return _loss(layer, hessian), ""
    if settings.rounding == "gptq" and hessian is not None:
        return _gptq(layer, statistics, hessian, settings, output_hessian)
    if settings.rounding == "clip" and hessian is not None:
        layer.set_qparams(
            *clipped_qparams(layer.master, hessian, spec, layer.weight_bits, *layer.settle_outer_scales())
        )
    else:
        method = "minmax" if settings.rounding == "rtn" else "mse"
        importance = hessian.diagonal().contiguous() if hessian is not None and method == "mse" else None
        layer.choose_weight_scale(method, importance)
    return _loss(layer, hessian), ""


def _gptq(
    layer: QuantLayer, statistics: InputStatistics, hessian: Tensor, settings: Initialize, output_hessian: Tensor | None
) -> tuple[float, str]:
    drift, (outer_scale, outer_offset) = statistics.drift, layer.settle_outer_scales()
    rounded = gptq(
        layer.master,
        hessian,
        layer.weight_spec,
        layer.weight_bits,
        damping=settings.damping,
        block_size=settings.block_size,
        sweeps=settings.sweeps,
        order=settings.order,
        scale_search=settings.scale_search,
        correction=settings.correction if drift is not None else 0.0,
        drift=drift,
        outer_scale=outer_scale,
        outer_offset=outer_offset,
        output_hessian=output_hessian,
    )
    loss = output_error(layer.master.float() - rounded.weight, hessian)
    layer.set_master(rounded.target)
    layer.set_qparams(rounded.scale, rounded.zero_point)
    _keep_codes(layer, rounded.codes)
    return loss, rounded.warning


def _keep_codes(layer: QuantLayer, codes: Tensor) -> None:
    """A half-precision weight may have been rounded across a border: such elements go to the middle of their cell."""
    spec = layer.weight_spec
    moved = layer.codes() != codes
    if moved.any():
        middle = dequantize(codes, *layer.stored_qparams(), spec.block)
        layer.set_master(torch.where(moved, middle, layer.master.float()))


def _loss(layer: QuantLayer, hessian) -> float:
    if hessian is None:
        return 0.0
    return output_error((layer.master - layer.quantized_weight()).float(), hessian)
