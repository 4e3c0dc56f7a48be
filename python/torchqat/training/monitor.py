"""What training does to the grid of the weights: how far scales move, how much is clipped, what oscillates."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.training.oscillation import Moves

# The frequency from which on a weight counts as oscillating: that of Nagel et al. 2022 (arXiv:2203.11086), table 1.
_OSCILLATES = 0.005


@dataclass
class _Sample:
    """The first rows of a layer's weight, as they were in the last step.

    Attributes:
        rows: How many.
        bits: Their width then.
        scale: float32, of the rows' blocks, when the width was new.
        moves: Of their codes.
    """

    rows: int
    bits: int
    scale: Tensor
    moves: Moves


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
            if not layer.on_integer_levels:
                self._samples.pop(name, None)
                continue
            for figure, value in self._look(name, layer).items():
                totals[figure] += value
            count += 1
        return {name: total / count for name, total in totals.items()} if count else {}

    def _look(self, name: str, layer: QuantLayer) -> dict[str, float]:
        rows = max(1, min(layer.matrix_shape[0], self.sample // layer.matrix_shape[1]))
        height = layer.weight_spec.block[0]
        rows = rows if height == -1 else max(height, rows // height * height)  # whole blocks
        weight = layer.master.detach()[:rows].float()
        scale, zero_point = _qparams(layer, rows)
        codes = ops.quantize(weight, layer.weight_spec.quantizer(layer.weight_bits, "fixed"), scale, zero_point)
        values = ops.dequantize(codes, scale, zero_point, layer.weight_spec.block, torch.float32)
        half = ops.dequantize(torch.ones_like(codes), scale, None, layer.weight_spec.block, torch.float32).abs() / 2
        figures = {"clipped_share": ((weight - values).abs() > half * 1.0001).float().mean().item()}
        before = self._samples.get(name)
        if before is None or before.bits != layer.weight_bits or before.rows != rows:
            self._samples[name] = _Sample(rows, layer.weight_bits, scale.abs(), Moves(codes))
            return {**figures, "moved_share": 0.0, "oscillating_share": 0.0, "scale_change": 0.0}
        moved = before.moves.update(codes).float().mean().item()
        oscillating = (before.moves.frequency > _OSCILLATES).float().mean().item()
        change = _change(before.scale, scale)
        return {**figures, "moved_share": moved, "oscillating_share": oscillating, "scale_change": change}


def _change(before: Tensor, scale: Tensor) -> float:
    return (scale.abs() / before).log2().abs().mean().item()


def _qparams(layer: QuantLayer, rows: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the first rows, without those of the rest where they are found from ranges."""
    spec = layer.weight_spec
    if spec.scale == "minmax" and spec.scales_by_row:
        weight = layer.master.detach()[:rows]
        return ops.choose_qparams(weight, spec.quantizer(layer.weight_bits, "minmax"))
    scale, zero_point = layer.stored_qparams()
    kept = 1 if spec.block[0] == -1 else rows // spec.block[0]
    return scale[:kept], zero_point[:kept]
