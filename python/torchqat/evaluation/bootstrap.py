"""Is a difference more than the noise of the text it was measured on? Paired bootstrap over sequences or examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES, _CONFIDENCE = 4000, 0.95  # the share of them within the interval
_MOST_AT_ONCE = 1 << 24  # elements


@dataclass(frozen=True)
class Interval:
    """An estimate, and where it would lie for 95 of 100 other samples of the same kind.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether ``value`` is within the noise of the estimate."""
        return self.low <= value <= self.high


def bootstrap(values: Sequence[float], transform: Callable[[Tensor], Tensor] = lambda mean: mean) -> Interval:
    """The mean of ``values`` and its 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    For two models measured on the same examples, ``values`` are the differences, example by example: what both find hard
    then cancels, which intervals of either alone would not show.

    Args:
        values: One an example.
        transform: Applied to the mean, such as ``torch.exp``; it must be monotonic.
    """
    sample = torch.tensor(values, dtype=torch.float64)
    if sample.numel() == 0:
        raise ValueError("values must have an element, but has none.")
    generator = torch.Generator().manual_seed(0)
    means = []
    rows = max(1, _MOST_AT_ONCE // sample.numel())
    for begin in range(0, _RESAMPLES, rows):
        count = min(rows, _RESAMPLES - begin)
        drawn = torch.randint(sample.numel(), (count, sample.numel()), generator=generator)
        means.append(sample[drawn].mean(-1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(*(transform(torch.as_tensor(x)).item() for x in (sample.mean(), low, high)))
