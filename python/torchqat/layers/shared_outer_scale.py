"""The outer scale of layers that engines fuse into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer


class SharedOuterScale:
    """One outer scale for several layers (``LayerPlan.shares``): the largest that a weight among them needs.

    An engine multiplies q, k and v, or gate and up, as one matrix with one outer scale; under the largest, each of them
    reaches all of its numbers.

    Attributes:
        layers: Those that share it, in the engine's order.
    """

    def __init__(self, layers: Sequence[QuantLayer]):
        self.layers = list(layers)
        self._stamps: list[tuple[int, ...]] = []
        self._found: Tensor | None = None
        self._settled: Tensor | None = None
        for layer in self.layers:
            layer.shared_outer_scale = self

    def needed(self, bits: int) -> Tensor:
        """What the weights need at ``bits`` by their ranges, which no search for scales leaves; float32."""
        return _largest([layer.needed_outer_scale(bits) for layer in self.layers])

    def settled(self, bits: int) -> Tensor:
        """The same as it was when first asked for since ``unsettle``: layers are rounded one after the other."""
        if self._settled is None:
            self._settled = self.needed(bits)
        return self._settled

    def unsettle(self) -> None:
        """Before weights are rounded again."""
        self._settled = None

    def in_force(self) -> Tensor:
        """What the weights, or learned scales, need now: found once for all layers, until one of them is written."""
        if torch.compiler.is_compiling() or any(layer.adapter is not None for layer in self.layers):
            return _largest([layer.outer_scale_in_force() for layer in self.layers])
        stamps = [_stamp(layer) for layer in self.layers]
        if self._found is None or stamps != self._stamps:
            self._stamps = stamps
            self._found = _largest([layer.outer_scale_in_force() for layer in self.layers])
        return self._found

    def forget(self) -> None:
        """Find it anew. Needed only after writing to a weight through ``.data``."""
        self._found = None


def _largest(outer: list[Tensor]) -> Tensor:
    return torch.stack([one.to(outer[0].device) for one in outer]).amax(0)


def _stamp(layer: QuantLayer) -> tuple[int, ...]:
    """What the outer scale of a layer comes from: where it lies, and how often it was written."""
    source = layer.weight_scale if layer.weight_spec.scale == "learned" else layer.weight
    return source.data_ptr(), source._version, layer.weight_bits
