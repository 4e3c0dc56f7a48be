"""Calibration batches without what fills their rows up: no padding reaches a statistic, whatever layers a model has."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from torchqat.errors import UserError

_MASK, _DECODER = "attention_mask", "decoder_"


def unpadded(batches: Iterable[Any]) -> Iterator[Any]:
    """``batches``, those with padding in their place as several, each of rows of one length.

    Args:
        batches: Where one is by name and has an ``attention_mask`` ``[rows, tokens]``, what that has 0 for is left out of
            every tensor ``[rows, tokens, ...]``; a ``decoder_attention_mask`` does so for what is the decoder's. So are rows
            without text.

    Raises:
        UserError: A row has text on both sides of padding.
    """
    for batch in batches:
        masks = _masks(batch)
        if all(bool(mask.all()) for mask in masks.values()):
            yield batch
            continue
        rows: dict[tuple, list[int]] = {}
        for row in range(len(next(iter(masks.values())))):
            stretches = tuple(_stretch(name, mask[row]) for name, mask in masks.items())
            if all(begin < end for begin, end in stretches):
                rows.setdefault(stretches, []).append(row)
        for stretches, places in rows.items():
            yield _part(batch, dict(zip(masks, stretches, strict=True)), torch.tensor(places), masks)


class Unpadded:
    """The same of what can be gone through more than once."""

    def __init__(self, batches: Iterable[Any]):
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return unpadded(self._batches)


def _masks(batch: Any) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping):
        return {}
    found = {name: batch.get(name) for name in (_MASK, _DECODER + _MASK)}
    return {name: mask != 0 for name, mask in found.items() if isinstance(mask, Tensor) and mask.dim() == 2}


def _stretch(name: str, mask: Tensor) -> tuple[int, int]:
    """Where the text of a row begins and ends."""
    places = mask.nonzero().flatten()
    if not len(places):
        return 0, 0
    begin, end = int(places[0]), int(places[-1]) + 1
    if end - begin != len(places):
        raise UserError(
            f"{name} of a calibration batch must be 1 for one stretch of each row, but is 0 between two tokens of a row."
        )
    return begin, end


def _part(batch: Mapping, stretches: dict[str, tuple[int, int]], rows: Tensor, masks: dict[str, Tensor]) -> Any:
    count = len(next(iter(masks.values())))
    found = {}
    for name, value in batch.items():
        mask = _DECODER + _MASK if name.startswith(_DECODER) else _MASK
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == count:
            value = value[rows.to(value.device)]
            begin, end = stretches.get(mask, (0, 0))
            if mask in masks and value.dim() > 1 and value.shape[1] == masks[mask].shape[1]:
                value = value[:, begin:end]
        found[name] = value
    return found
