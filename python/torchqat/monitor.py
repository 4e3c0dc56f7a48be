"""What training does to the grid of the weights: how far scales move, how much is clipped, what oscillates."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat._library import DTYPES, FLOAT
from torchqat.linear import QuantLinear
from torchqat.prepare import quant_layers

# Share of a new observation in the frequency of oscillation, and the frequency from which on a weight counts as
# oscillating: those of Nagel et al. 2022 (arXiv:2203.11086), equation 4 and table 1.
_MOMENTUM, _OSCILLATES = 0.01, 0.005


@dataclass
class _Sample:
    """The first rows of a layer's weight, as they were in the last step.

    Attributes:
        rows: How many.
        bits: Their width then.
        codes: int8 ``[rows, in]``.
        scale: float32, of the rows' blocks, when the width was new.
        direction: int8, the sign of each code's last move.
        frequency: float32, how often a code moved against its last move.
    """

    rows: int
    bits: int
    codes: Tensor
    scale: Tensor
    direction: Tensor
    frequency: Tensor


class Monitor:
    """Follows a prepared model from step to step, on a sample of each layer's weight.

    Args:
        model: A prepared model.
        sample: Elements of each layer that are looked at, in whole rows.
    """

    def __init__(self, model: nn.Module, sample: int = 1 << 14):
        self.model, self.sample = model, sample
        self._samples: dict[str, _Sample] = {}

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Look once, after an optimizer step; returns averages over all layers that are quantized now.

        - ``clipped_share``: of weights that lie beyond the grid.
        - ``moved_share``: of codes that are others than a step before.
        - ``oscillating_share``: of codes that keep moving to and fro.
        - ``scale_change``: mean of ``|log2(scale now / scale when the width was new)|``.
        """
        totals: dict[str, float] = defaultdict(float)
        count = 0
        for name, layer in quant_layers(self.model):
            if layer.weight_spec is None or layer.weight_bits == FLOAT or layer.weight_spec.grid.startswith("fp8"):
                self._samples.pop(name, None)
                continue
            for figure, value in self._look(name, layer).items():
                totals[figure] += value
            count += 1
        return {name: total / count for name, total in totals.items()} if count else {}

    def _look(self, name: str, layer: QuantLinear) -> dict[str, float]:
        rows = max(1, min(layer.out_features, self.sample // layer.in_features))
        height = layer.weight_spec.block[0]
        rows = rows if height == -1 else max(height, rows // height * height)  # whole blocks
        weight = layer.weight.detach()[:rows].float()
        scale, zero_point = _qparams(layer, rows)
        ends = layer.weight_spec.quant_range(layer.weight_bits)
        codes = ops.quantize(weight, scale, zero_point, layer.weight_spec.block, *ends)
        values = ops.dequantize(codes, scale, zero_point, layer.weight_spec.block, torch.float32)
        half = ops.dequantize(torch.ones_like(codes), scale, None, layer.weight_spec.block, torch.float32).abs() / 2
        figures = {"clipped_share": ((weight - values).abs() > half * 1.0001).float().mean().item()}
        before = self._samples.get(name)
        if before is None or before.bits != layer.weight_bits or before.rows != rows:
            still = torch.zeros_like(codes)
            self._samples[name] = _Sample(rows, layer.weight_bits, codes, scale.abs(), still, torch.zeros(codes.shape))
            return {**figures, "moved_share": 0.0, "oscillating_share": 0.0, "scale_change": 0.0}
        return {**figures, **_moves(before, codes), "scale_change": _change(before.scale, scale)}


def _moves(before: _Sample, codes: Tensor) -> dict[str, float]:
    """Counts the moves since the last step, and remembers them."""
    direction = torch.sign(codes.short() - before.codes.short()).to(torch.int8)
    moved = direction != 0
    against = moved & (direction == -before.direction)
    before.frequency = before.frequency.to(codes.device)
    before.frequency.mul_(1 - _MOMENTUM).add_(against.float(), alpha=_MOMENTUM)
    before.direction = torch.where(moved, direction, before.direction)
    before.codes = codes
    return {
        "moved_share": moved.float().mean().item(),
        "oscillating_share": (before.frequency > _OSCILLATES).float().mean().item(),
    }


def _change(before: Tensor, scale: Tensor) -> float:
    return (scale.abs() / before).log2().abs().mean().item()


def _qparams(layer: QuantLinear, rows: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the first rows, without those of the rest where they are found from ranges."""
    spec = layer.weight_spec
    if spec.scale == "minmax" and spec.granularity in ("group", "channel"):
        weight = layer.weight.detach()[:rows]
        return ops.choose_qparams(weight, spec.block, layer.weight_bits, spec.grid, "minmax", DTYPES[spec.scale_dtype])
    scale, zero_point = layer.stored_qparams()
    kept = 1 if spec.block[0] == -1 else rows // spec.block[0]
    return scale[:kept], zero_point[:kept]
