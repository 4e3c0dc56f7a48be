"""Weights as the last step of a schedule left them: one that was written since was assigned, not trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from torchqat.layers.sharded import is_part

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer


class SteppedWeight:
    """Where a weight lay after a step, and how often it had been written: no look at its numbers.

    Copies and pickles of a layer, whose weights lie elsewhere, begin with nothing.
    """

    def __init__(self):
        self._was: tuple[int, int] | None = None

    def __reduce__(self):
        return SteppedWeight, ()

    def note(self, layer: QuantLayer) -> None:
        """A step of the schedule has ended."""
        self._was = _state(layer.weight) if layer.weight.requires_grad else None

    def forget(self) -> None:
        """The weight has been given anew, and all that follows from it."""
        self._was = None

    def written(self, layer: QuantLayer) -> bool:
        """Whether something wrote to the weight of ``layer`` since, but through its ``.data``, or put another there."""
        return self._was is not None and self._was != _state(layer.weight)


def _state(weight: Tensor) -> tuple[int, int] | None:
    if weight.is_meta or is_part(weight) or weight.is_inference():
        return None
    return weight.untyped_storage()._cdata, weight._version  # of tensors without memory, too, which have no address
