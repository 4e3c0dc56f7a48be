"""Windows of a stream of text: to measure, to calibrate on, and, of held-out text, to choose by."""

import torch
from torch import Tensor

from torchqat.data.token_file import Tokens
from torchqat.errors import UserError

# Tokens of a batch of windows, at most, unless one has more.
TOKENS_AT_ONCE = 2048
_WINDOWS_AT_ONCE = 8


def begun(tokens: Tokens, starts: Tensor, length: int, first: int | None) -> Tensor:
    """int64 ``[len(starts), length]``: ``tokens`` from each of ``starts`` on, after ``first`` where texts begin with it."""
    if first is None:
        return tokens.windows(starts, length)
    found = tokens.windows(starts, length - 1)
    return torch.cat([torch.full((len(found), 1), first), found], 1)


def windows(
    tokens: Tokens | Tensor,
    samples: int,
    sequence_length: int,
    batch_size: int = _WINDOWS_AT_ONCE,
    first: int | None = None,
) -> list[Tensor]:
    """Up to ``samples`` windows spread evenly over ``tokens``, in batches ``[<= batch_size, sequence_length]``.

    Args:
        tokens: int64 ``[n]`` where it is a tensor.
        samples: At most so many; windows do not overlap.
        sequence_length: Tokens of each, ``first`` included; fewer where there are fewer.
        batch_size: Rows of a batch.
        first: What each begins with before its own tokens.

    Raises:
        UserError: There are fewer than 2 tokens.
    """
    tokens = tokens if isinstance(tokens, Tokens) else Tokens.of(tokens)
    taken, starts = _laid_out(len(tokens), samples, sequence_length - (first is not None))
    rows = begun(tokens, starts, taken + (first is not None), first)
    return list(rows.split(batch_size))


def _laid_out(count: int, samples: int, length: int, least: int = 2) -> tuple[int, Tensor]:
    """The length of windows in ``count`` tokens, and where each begins."""
    if count < least:
        raise UserError(f"held-out data must have at least {least} tokens, but has {count}.")
    length = min(length, count)
    found = min(samples, count // length)
    stride = (count - length) // max(1, found - 1) if found > 1 else 0
    return length, torch.arange(found) * stride


def held_out_windows(
    tokens: Tokens, samples: int, sequence_length: int, first: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Windows to report on and as many others to choose the best state by, none of which overlap.

    Where there is room, those to choose by lie halfway between those to report on; else every second window of all is one.
    Of text that is shorter than two windows, each has half.

    Raises:
        UserError: There are fewer than 4 tokens.
    """
    length = min(sequence_length - (first is not None), len(tokens) // 2)
    taken, starts = _laid_out(len(tokens), samples, max(1, length), least=4)
    gap = int(starts[1]) if len(starts) > 1 else len(tokens) - taken
    between = starts + gap // 2
    between = between[between + taken <= len(tokens)]
    if gap < 2 * taken:
        _, starts = _laid_out(len(tokens), 2 * samples, taken, least=4)
        starts, between = starts[::2], starts[1::2]
    both = (begun(tokens, places, taken + (first is not None), first) for places in (starts, between))
    return tuple(list(rows.split(_WINDOWS_AT_ONCE)) for rows in both)


def all_windows(tokens: Tokens, samples: int, sequence_length: int, first: int | None = None) -> list[Tensor]:
    """All of ``tokens`` in windows one after the other, the last one shorter; where ``samples`` is not 0, up to so many.

    Raises:
        UserError: There are fewer than 2 tokens.
    """
    most = max(1, TOKENS_AT_ONCE // sequence_length)
    if samples:
        return windows(tokens, samples, sequence_length, min(most, _WINDOWS_AT_ONCE), first)
    length = sequence_length - (first is not None)
    if len(tokens) < 2:
        raise UserError(f"held-out data must have at least 2 tokens, but has {len(tokens)}.")
    whole, rest = divmod(len(tokens), length)
    found = []
    if whole:
        found += begun(tokens, torch.arange(whole) * length, sequence_length, first).split(most)
    if rest > (first is None):  # one token alone predicts none
        found.append(begun(tokens, torch.tensor([whole * length]), rest + (first is not None), first))
    return found
