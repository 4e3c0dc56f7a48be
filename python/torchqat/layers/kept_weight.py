"""The rounded weights that layers keep: on the streams of a GPU, and filled in one call after an optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from torchqat._library import WeightCache, fill_caches

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer


# Steps that optimizers took in this program, whichever they are: fused ones write weights without moving their version.
_steps = 0


def _count_step(*_) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


class Maker:
    """On which stream of a GPU what a cache keeps was made. Another one waits for it, and torch's allocator for that one.

    Copies and pickles of a layer, whose caches begin empty, begin with nothing.
    """

    def __init__(self):
        self._version, self._stream, self._made = -1, None, None
        self._steps = _steps

    def __reduce__(self):
        return Maker, ()

    def note(self, cache: WeightCache, stream: torch.cuda.Stream, made: torch.cuda.Event) -> None:
        """``cache`` was filled on ``stream``, as far as the event ``made`` in it."""
        self._version, self._stream, self._made = cache.version, stream, made

    def forget_what_was_stepped(self, cache: WeightCache) -> None:
        """Clear ``cache`` if an optimizer took a step since it was asked last."""
        if self._steps != _steps:
            self._steps = _steps
            cache.clear()

    def hand_out(self, cache: WeightCache, kept: list[Tensor]) -> list[Tensor]:
        """``kept``, which ``cache`` just gave, for the stream that is current."""
        if not kept or not kept[0].is_cuda:
            return kept
        stream = torch.cuda.current_stream(kept[0].device)
        if cache.version != self._version:
            self.note(cache, stream, stream.record_event())
        elif stream != self._stream:
            stream.wait_event(self._made)
            for tensor in kept:
                tensor.record_stream(stream)
        return kept


@contextmanager
def keeping_weights(layers: Iterable[QuantLayer]) -> Iterator[None]:
    """``layers`` keep their rounded weights for a while, whatever they are to keep in training."""
    own = [(layer, layer._cache) for layer in layers]
    try:
        for layer, _ in own:
            layer._cache, layer._maker = WeightCache("weights"), Maker()
        yield
    finally:
        for layer, cache in own:
            layer._cache, layer._maker = cache, Maker()


def capturing(weight: Tensor) -> bool:
    """Whether a CUDA graph is being captured, whose replay would find what is kept now freed or of another step."""
    return weight.is_cuda and torch.cuda.is_current_stream_capturing()


@torch.no_grad()
def round_together(layers: Iterable[QuantLayer]) -> None:
    """Round the weights that ``layers`` keep, in one call: the same bits as by one layer after the other in its forward.

    Layers that no forward has asked for their weight since they were made are left alone.
    """
    layers = [layer for layer in layers if layer.keeps_weight]
    if not layers:
        return
    scales, zero_points = zip(*(layer._weight_parameters() for layer in layers), strict=True)
    texts = [layer._weight_quantizer.text for layer in layers]
    caches = [layer._cache for layer in layers]
    for layer in layers:
        layer._maker.forget_what_was_stepped(layer._cache)
    before = [cache.version for cache in caches]
    outer_scales = [layer.outer_scale() for layer in layers]
    fill_caches(caches, texts, [layer.weight for layer in layers], list(scales), list(zero_points), outer_scales)
    made: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Event]] = {}
    for layer, version in zip(layers, before, strict=True):
        if layer.weight.is_cuda and layer._cache.version != version:
            device = layer.weight.device
            if device not in made:
                stream = torch.cuda.current_stream(device)
                made[device] = stream, stream.record_event()
            layer._maker.note(layer._cache, *made[device])
