"""What calibration found."""

from dataclasses import dataclass, field

from torch import Tensor

from torchqat.errors import first_of


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
        shared: Layers that several blocks hold, and that no block could be rounded with.
        objective: What GPTQ made least, ``"model"`` or ``"layer"``; ``""`` where it was not asked for.
        warnings: What had to be done differently, one sentence each.
    """

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    cache_scales: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    unfolded: dict[str, list[str]] = field(default_factory=dict)
    unrouted: list[str] = field(default_factory=list)
    rowless: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    objective: str = ""
    warnings: list[str] = field(default_factory=list)

    def note_what_was_left(self, trained_blocks: bool) -> None:
        """Put what methods had no place or no data for into the warnings."""
        self.warnings += [_shared(self.shared, trained_blocks)] if self.shared else []
        self.warnings += [_unfolded(transform, names) for transform, names in self.unfolded.items() if names]
        self.warnings += [_unrouted(self.unrouted)] if self.unrouted else []
        self.warnings += [_rowless(self.rowless)] if self.rowless else []


def _unfolded(transform: str, names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} has nothing to fold {transform} scales into, so it goes without them."
    return (
        f"{len(names)} layers have nothing to fold {transform} scales into, so they go without them; the first is "
        f"{names[0]}."
    )


def _unrouted(names: list[str]) -> str:
    return (
        f"{first_of(names)} are experts whose module does not tell which tokens reach which, so they are rounded to "
        "nearest."
    )


def _rowless(names: list[str]) -> str:
    return (
        f"{first_of(names)} are convolutions whose outputs share no rows of the input (in groups or transposed), so they "
        "are rounded to nearest."
    )


def _shared(names: list[str], trained_blocks: bool) -> str:
    untrained = ", and trained with none of them" if trained_blocks else ""
    return (
        f"{first_of(names)} are held by several blocks, so they are rounded after all of these, on what each gives "
        f"them{untrained}."
    )
