"""What inputs whose range follows them were rounded by in a forward, for the same forward when a backward runs it again."""

from __future__ import annotations

from collections import defaultdict, deque
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from torchqat.layers.quant_input import QuantInput

    Parameters = tuple[Tensor | None, ...]

_recording: ContextVar[defaultdict[QuantInput, list[Parameters]] | None] = ContextVar("recording", default=None)
_replaying: ContextVar[dict[QuantInput, deque[Parameters]] | None] = ContextVar("replaying", default=None)


class _Forward:
    """Within it, what layers round their inputs by is kept."""

    def __init__(self):
        self.kept: defaultdict[QuantInput, list[Parameters]] = defaultdict(list)

    def __enter__(self):
        self._token = _recording.set(self.kept)

    def __exit__(self, *_):
        _recording.reset(self._token)


class _Again:
    """Within it, layers round by what ``forward`` has kept."""

    def __init__(self, forward: _Forward):
        self._forward = forward

    def __enter__(self):
        self._token = _replaying.set({layer: deque(kept) for layer, kept in self._forward.kept.items()})

    def __exit__(self, *_):
        _replaying.reset(self._token)


def same_ranges() -> tuple[_Forward, _Again]:
    """``context_fn`` of ``torch.utils.checkpoint``: a layer that other forwards moved since rounds as it did."""
    forward = _Forward()
    return forward, _Again(forward)


def as_before(layer: QuantInput, parameters: Parameters) -> Parameters:
    """What ``layer`` rounds by: ``parameters``, or, in a forward that is run again, what these were."""
    again = _replaying.get()
    if again and again.get(layer):
        return again[layer].popleft()
    kept = _recording.get()
    if kept is not None:
        kept[layer].append(parameters)
    return parameters
