"""``train.weight_cache: auto``: a GPU keeps the rounded weights where it has the memory for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torchqat._library import WeightCache
from torchqat.layers.sharded import is_part

if TYPE_CHECKING:
    from torchqat.layers.quant_layer import QuantLayer

# Of the memory that is free after a whole step, the share that a copy of the weights may take.
_SHARE = 0.5


@dataclass(frozen=True)
class CacheChoice:
    """What layers keep from now on, ``none`` or ``weights``, and what to tell the user; nothing on a CPU."""

    policy: str
    sentence: str = ""


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that neither this program, its allocator's reserve included, nor another one holds."""
    return torch.cuda.mem_get_info(device)[0]


def settle(layers: Iterable[QuantLayer], free: Callable[[torch.device], int] = free_memory) -> CacheChoice | None:
    """Decide for the ``layers`` that are left at ``auto``; ``None`` where there are none.

    To be called after a first step, when the optimizer's states and the most that activations need are allocated. A copy
    of the quantized weights, in the dtype that products are computed in, may take half of what is free then. On a CPU
    nothing is kept.
    """
    layers = [layer for layer in layers if layer._cache.policy == "auto"]
    if not layers:
        return None
    needed: Counter[torch.device] = Counter()
    for layer in layers:
        # Only what a forward asked for, which those that are compiled or have an adapter do not, counts.
        if layer._cache.dtype is not None and layer.weight.is_cuda and not is_part(layer.weight):
            needed[layer.weight.device] += layer.weight.numel() * layer._cache.dtype.itemsize
    choice = _choose({device: (size, free(device)) for device, size in needed.items()})
    for layer in layers:
        layer._cache = WeightCache(choice.policy)
    return choice


def _choose(memory: dict[torch.device, tuple[int, int]]) -> CacheChoice:
    if not memory:
        return CacheChoice("none")
    short = [device for device, (needed, free) in memory.items() if needed > _SHARE * free]
    device = short[0] if short else next(iter(memory))
    needed, free = (f"{size / 2**30:.2f} GiB" for size in memory[device])
    if short:
        return CacheChoice(
            "none",
            f"Rounded weights are not kept over a step (train.weight_cache: none): they would take {needed}, more than "
            f"half of the {free} that are free on {device}.",
        )
    return CacheChoice(
        "weights",
        f"Rounded weights are kept over a step (train.weight_cache: weights): they take {needed} of the {free} that are "
        f"free on {device}.",
    )
