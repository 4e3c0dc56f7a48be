"""Whether a layer's scales still are those of its weight: fixed and learned ones stay when another weight is assigned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchqat import ops
from torchqat._library import FLOAT
from torchqat.layers.fake_quantizer import FakeQuantizer
from torchqat.layers.sharded import is_part

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer

# How much larger the squared error of rounding must be than that of scales by the range of the weight. Those that were
# searched for it are better than these, far better where a few large weights stand in a row of small ones.
_FAR = 4.0
# And how large beside the weight itself: of 8 bits, a scale that is somewhat wide does no harm.
_HARM = 1e-4
# So many rows tell.
_ROWS = 256


@torch.no_grad()
def misfit(layer: QuantLayer) -> float:
    """How many times the error of scales by its range the weight of ``layer`` is rounded with; 0 where the scales fit.

    Scales that a schedule is to return to count as well. It takes a look at some rows, or at all where rows share a scale.
    Weights whose scales are found in every forward, frozen codes, and weights that are elsewhere have no such thing.
    """
    spec = layer.weight_spec
    if spec is None or spec.finds_scale or layer.frozen_codes is not None or is_part(layer.weight):
        return 0.0
    if layer.weight.is_meta or layer.weight_scale.is_meta:
        return 0.0
    in_force = layer.weight_bits, layer._weight_quantizer, *layer._weight_parameters()
    ratio = 0.0 if layer.weight_bits == FLOAT else _excess(layer, *in_force)
    return max(ratio, lattice_misfit(layer) if layer.weight_bits != spec.bits else 0.0)


@torch.no_grad()
def lattice_misfit(layer: QuantLayer) -> float:
    """The same of the scales that were chosen before training together with codes; 0 where there are none."""
    if not layer.has_lattice or layer.weight.is_meta or is_part(layer.weight):
        return 0.0
    spec = layer.weight_spec
    quantizer = FakeQuantizer(spec.quantizer(spec.bits, "fixed"))
    return _excess(layer, spec.bits, quantizer, layer.lattice_scale, layer.lattice_zero_point)


def _excess(layer: QuantLayer, bits: int, quantizer: FakeQuantizer, scale: Tensor, zero_point: Tensor | None) -> float:
    spec, weight = layer.weight_spec, layer.master
    if spec.scales_by_row and len(weight) > _ROWS:
        rows = torch.linspace(0, len(weight) - 1, _ROWS, device=weight.device).long()
        weight, scale, zero_point = (None if t is None else t[rows] for t in (weight, scale, zero_point))
    now = _error(weight, quantizer(weight, scale, zero_point, layer.outer_scale()))
    if now <= _HARM * _error(weight, 0.0):
        return 0.0
    text, outer = spec.quantizer(bits, "minmax"), (None, None)
    if spec.has_outer_scale:
        outer = ops.choose_outer_scales(weight, text)
    own = FakeQuantizer(spec.quantizer(bits, "fixed"))
    by_range = _error(weight, own(weight, *ops.choose_qparams(weight, text, "minmax", None, *outer), None))
    return now / by_range if now > _FAR * by_range else 0.0


def _error(weight: Tensor, rounded: Tensor | float) -> float:
    return (weight.float() - rounded).square().sum(dtype=torch.float64).item()
