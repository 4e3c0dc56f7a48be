"""What training does to the grid of the weights: how far scales move, how much is clipped, what oscillates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.training.oscillation import Moves, on_device_of_layer

# The frequency from which on a weight counts as oscillating: that of Nagel et al. 2022 (arXiv:2203.11086), table 1.
_OSCILLATES = 0.005
# What is looked at, in the order of ``Monitor.look``.
FIGURES = ("clipped_share", "moved_share", "oscillating_share", "scale_change")


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
        return self.named(self.look().cpu().tolist())

    @staticmethod
    def named(figures: Sequence[Any]) -> dict[str, Any]:
        """What ``look`` gave, by name."""
        return dict(zip(FIGURES, figures, strict=True)) if len(figures) else {}

    @torch.no_grad()
    def look(self) -> Tensor:
        """``step``, but its figures stay on the device: float64 ``[4]``, or ``[0]`` where no layer is quantized now."""
        total, count = None, 0
        for name, layer in quant_layers(self.model):
            if not layer.on_integer_levels:
                self._samples.pop(name, None)
                continue
            figures = self._look(name, layer).double()
            total = figures if total is None else total + figures.to(total.device)
            count += 1
        return torch.zeros(0, dtype=torch.float64) if total is None else total / count

    def state_dict(self) -> dict[str, Any]:
        """What it goes by, for checkpoints: a run that is resumed counts on."""
        return {
            name: {"rows": seen.rows, "bits": seen.bits, "scale": seen.scale} | seen.moves.state_dict()
            for name, seen in self._samples.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave of a monitor of the same model."""
        self._samples, layers = {}, dict(quant_layers(self.model))
        for name, found in state.items():
            kept = on_device_of_layer(found, layers[name].weight.device)
            self._samples[name] = _Sample(kept["rows"], kept["bits"], kept["scale"], Moves.of_state(kept))

    def _look(self, name: str, layer: QuantLayer) -> Tensor:
        rows = max(1, min(layer.matrix_shape[0], self.sample // layer.matrix_shape[1]))
        height = layer.weight_spec.block[0]
        rows = rows if height == -1 else max(height, rows // height * height)  # whole blocks
        weight = layer.master.detach()[:rows].float()
        scale, zero_point = _qparams(layer, rows)
        codes = ops.quantize(weight, layer.weight_spec.quantizer(layer.weight_bits, "fixed"), scale, zero_point)
        values = ops.dequantize(codes, scale, zero_point, layer.weight_spec.block, torch.float32)
        half = ops.dequantize(torch.ones_like(codes), scale, None, layer.weight_spec.block, torch.float32).abs() / 2
        clipped = ((weight - values).abs() > half * 1.0001).float().mean()
        before = self._samples.get(name)
        if before is None or before.bits != layer.weight_bits or before.rows != rows:
            self._samples[name] = _Sample(rows, layer.weight_bits, scale.abs(), Moves(codes))
            return torch.stack([clipped, *clipped.new_zeros(3)])
        moved = before.moves.update(codes).float().mean()
        oscillating = (before.moves.frequency > _OSCILLATES).float().mean()
        return torch.stack([clipped, moved, oscillating, (scale.abs() / before.scale).log2().abs().mean()])


def _qparams(layer: QuantLayer, rows: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the first rows, without those of the rest where they are found from ranges."""
    spec = layer.weight_spec
    if spec.finds_scale and spec.scales_by_row:
        weight = layer.master.detach()[:rows]
        return ops.choose_qparams(weight, spec.quantizer(layer.weight_bits, "minmax"), spec.finder(layer.weight_bits))
    scale, zero_point = layer.stored_qparams()
    kept = 1 if spec.block[0] == -1 else rows // spec.block[0]
    return scale[:kept], zero_point[:kept]
