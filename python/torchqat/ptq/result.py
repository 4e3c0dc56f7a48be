"""What calibration found."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Calibration:
    """What calibration found.

    Attributes:
        ranges: Observed smallest and largest element of each input whose range is fixed.
        losses: Squared error of each rounded layer's output per token, where it was measured.
        tokens: Calibrated tokens per layer.
        cache_scales: Calibrated scales of keys and values, ``None`` where they are found in every call, by attention layer.
        unfolded: Layers that a transform's scales had nowhere to be folded into, by transform.
        unrouted: Experts that are rounded to nearest, since their module does not tell which tokens reach which.
        rowless: Convolutions in groups or transposed, which methods that need rows of the input round to nearest.
        warnings: What had to be done differently, one sentence each.
    """

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    cache_scales: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    unfolded: dict[str, list[str]] = field(default_factory=dict)
    unrouted: list[str] = field(default_factory=list)
    rowless: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
