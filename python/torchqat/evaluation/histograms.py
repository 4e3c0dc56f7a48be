"""How weights and scales are distributed, before and after: for the pictures of a report."""

import torch
from torch import Tensor, nn

from torchqat._library import FLOAT
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.experts import matrix_of
from torchqat.ops import choose_qparams

_BINS = 80
_WEIGHT_ENDS = (-4.0, 4.0)  # standard deviations of the layer
_SCALE_ENDS = (-2.0, 1.0)  # powers of two


@torch.no_grad()
def histograms(model: nn.Module, original: nn.Module) -> dict[str, dict[str, list[float]]]:
    """Shares in bins of equal width, over all quantized layers of ``model``.

    ``weights``: of the float model (``before``) and as they are deployed (``after``), in standard deviations of the layer.
    ``scales``: those of ``model`` over those that the range of the float weights would give, in powers of two; left of 0 the
    grid ends before the weights do.
    """
    weights = {"before": torch.zeros(_BINS), "after": torch.zeros(_BINS)}
    scales = torch.zeros(_BINS)
    for name, layer in quant_layers(model):
        if layer.weight_spec is None or layer.weight_bits == FLOAT:
            continue
        before = matrix_of(original, name).detach().float()
        deviation = before.std().clamp(min=1e-12)
        weights["before"] += _counts(before / deviation, _WEIGHT_ENDS)
        weights["after"] += _counts(layer.quantized_weight().float() / deviation, _WEIGHT_ENDS)
        scales += _counts(_relative_scales(layer, before), _SCALE_ENDS)
    found = {"weights": {"ends": list(_WEIGHT_ENDS), **{name: _shares(counts) for name, counts in weights.items()}}}
    return {**found, "scales": {"ends": list(_SCALE_ENDS), "after": _shares(scales)}}


def _relative_scales(layer: QuantLayer, before: Tensor) -> Tensor:
    spec = layer.weight_spec
    scale, _ = layer.stored_qparams()
    ranged, _ = choose_qparams(before, spec.quantizer(layer.weight_bits, "minmax"))
    return (scale.abs() / ranged.abs()).log2().nan_to_num(0.0)


def _counts(values: Tensor, ends: tuple[float, float]) -> Tensor:
    return torch.histc(values.cpu().clamp(*ends), _BINS, *ends)


def _shares(counts: Tensor) -> list[float]:
    return (counts / counts.sum().clamp(min=1)).tolist()
