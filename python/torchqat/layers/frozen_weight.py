"""Weights that were frozen while the model trained: one that is another since was not trained as it is rounded now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchqat.layers.sharded import is_part

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer

# Of sums of the same numbers on two devices; what is merged into a weight moves them further.
_SAME = 1e-9
# Elements that are in float64 at once, into which torch makes a copy of what it sums.
_AT_ONCE = 1 << 22


class FrozenWeight:
    """What a weight was, in two sums, when its model trained and it did not. It costs one look at the weight, once.

    Attributes:
        in_training: Whether the layer ran to be trained, or what is before it.
    """

    def __init__(self):
        self.in_training = False
        self._sums: Tensor | None = None
        self._dtype: torch.dtype | None = None

    def see(self, layer: QuantLayer) -> None:
        """A forward of ``layer``, of which those in training mode count."""
        if not (layer.training and torch.is_grad_enabled()):
            return
        self.in_training = True
        if layer.weight.requires_grad:
            self._sums = None
        elif self._sums is None and layer.adapter is None and not (is_part(layer.weight) or layer.weight.is_meta):
            self._sums, self._dtype = _sums(layer.weight), layer.weight.dtype

    def forget(self) -> None:
        """The weight has been given anew, and all that follows from it."""
        self._sums, self.in_training = None, False

    def changed(self, layer: QuantLayer) -> bool:
        """Whether the weight of ``layer`` is another since, though no optimizer can have moved it.

        One that is trained by now may have been so in a compiled graph, in which no forward is seen.
        """
        weight = layer.weight
        if weight.requires_grad:
            return False
        if self._sums is None or weight.is_meta or is_part(weight) or weight.dtype != self._dtype:
            return False
        before, now = self._sums.cpu(), _sums(weight).cpu()
        return bool(((now - before).abs() > _SAME * before[1]).any()) and not _went_through_half(weight)


@torch.no_grad()
def _went_through_half(weight: Tensor) -> bool:
    """Whether a float32 weight has the digits of a half dtype alone, as a model that was in one for a while."""
    halves = (torch.bfloat16, torch.float16) if weight.dtype == torch.float32 else ()
    return any(torch.equal(weight.to(half).float(), weight) for half in halves)


@torch.no_grad()
def _sums(weight: Tensor) -> Tensor:
    """Of the elements and of their magnitudes, float64 ``[2]``."""
    rows = max(1, _AT_ONCE * len(weight) // max(1, weight.numel()))
    parts = weight.detach().split(rows)
    return sum(torch.stack([_sum(part), _sum(part.abs())]) for part in parts)


def _sum(part: Tensor) -> Tensor:
    return part.sum(dtype=torch.float64)
