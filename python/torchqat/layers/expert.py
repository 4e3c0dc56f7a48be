"""``Expert``: one matrix of ``QuantExperts``, with what a method that rounds it asks of a layer."""

import torch
from torch import Tensor

from torchqat import ops
from torchqat._library import QuantSpec
from torchqat.layers.experts import QuantExperts


class Expert:
    """The matrix of one expert: a view of its part of the weight, of the scales and of the zero points.

    Args:
        layer: Its scales are searched or learned, in blocks that lie in one expert each.
        index: Which expert.
    """

    def __init__(self, layer: QuantExperts, index: int):
        self.layer, self.index = layer, index
        self._begin, self._end = layer.rows_of(index)

    @property
    def weight_spec(self) -> QuantSpec:
        return self.layer.weight_spec

    @property
    def weight_bits(self) -> int:
        return self.layer.weight_bits

    @property
    def master(self) -> Tensor:
        weight = self.layer.weight[self.index]
        return weight.t() if self.layer.transposed else weight

    @torch.no_grad()
    def set_master(self, matrix: Tensor) -> None:
        self.master.copy_(matrix)

    def stored_qparams(self) -> tuple[Tensor, Tensor]:
        """As of ``QuantLayer``, ``[out, groups]``."""
        scale, zero_point = self.layer.stored_qparams()
        return self._part(scale), self._part(zero_point)

    def codes(self) -> Tensor:
        return ops.quantize(self.master, self.weight_spec.quantizer(self.weight_bits, "fixed"), *self.stored_qparams())

    def quantized_weight(self) -> Tensor:
        if self.weight_spec.scales_by_row:
            return self.layer.rounded_rows(self._begin, self._end)
        return self.layer.quantized_weight()[self._begin : self._end]

    @torch.no_grad()
    def choose_weight_scale(self, method: str, importance: Tensor | None = None) -> None:
        text = self.weight_spec.quantizer(self.weight_bits, "minmax")
        outer = self.settle_outer_scales()
        self.set_qparams(*ops.choose_qparams(self.master.contiguous(), text, method, importance, *outer))

    def settle_outer_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """As of ``QuantLayer``: its part of those of all experts, which may share one."""
        outer, offset = self.layer.settle_outer_scales()
        return None if outer is None else self._part(outer), None if offset is None else self._part(offset)

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """As of ``QuantLayer``, for this matrix alone."""
        layer = self.layer
        pairs = [(layer.weight_scale, scale), (layer.weight_zero_point, zero_point)]
        if layer.keeps_scales and layer.weight_bits == layer.weight_spec.bits:
            pairs += [(layer.lattice_scale, scale), (layer.lattice_zero_point, zero_point)]
            layer.keep_lattice_outer_scales()
        for whole, part in pairs:
            if whole is not None:
                self._part(whole).copy_(part)
        layer.forget_weight()

    def _part(self, grid: Tensor) -> Tensor:
        if len(grid) == 1:
            return grid
        height = self.layer.matrix_shape[0] // grid.shape[0]
        return grid[self._begin // height : self._end // height]
