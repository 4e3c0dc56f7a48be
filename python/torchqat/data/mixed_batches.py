"""Batches of several sources, and of conversations."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

import torch

from torchqat.data.batch import Batch, generator_at
from torchqat.data.conversations import Conversations, Row, collated


class Drawn(Protocol):
    """Rows that are drawn at random: windows of text, or conversations."""

    @property
    def largest_token(self) -> int: ...

    def draw(self, count: int, generator: torch.Generator) -> Sequence: ...


class MixedBatches:
    """Rows of several sources, drawn by weight. Batch ``step`` is a function of the seed and the step alone.

    Args:
        sources: What has ``draw(count, generator)``, windows of text or rows of conversations.
        weights: How often each is drawn from, relative to the others.
        batch_size: Rows.
        seed: Any integer.
        padding: What fills shorter rows.
        packed_to: As ``collated`` takes it.
    """

    def __init__(
        self,
        sources: Sequence[Drawn],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        padding: int = 0,
        packed_to: int = 0,
    ):
        self.sources, self.weights, self.batch_size, self.seed = sources, list(weights), batch_size, seed
        self._padding, self._packed_to = padding, packed_to
        self._texts = not any(isinstance(source, Conversations) for source in sources)

    def __getitem__(self, step: int) -> Batch:
        generator = generator_at(self.seed, step)
        chosen = [0] * self.batch_size
        if len(self.sources) > 1:
            weights = torch.tensor(self.weights, dtype=torch.float64)
            chosen = torch.multinomial(weights, self.batch_size, replacement=True, generator=generator).tolist()
        drawn = {one: iter(self.sources[one].draw(chosen.count(one), generator)) for one in sorted(set(chosen))}
        rows = [next(drawn[one]) for one in chosen]
        if self._texts:
            return torch.stack(rows)
        rows = [row if isinstance(row, Row) else Row.of(row) for row in rows]
        per_row = sum(int(row.counted.sum()) for row in rows) / len(rows)
        return collated(rows, self._padding, self._packed_to, per_row)

    @property
    def steps_of_epoch(self) -> float:
        """Steps that take as many rows as there are in all sources."""
        return sum(map(_rows, self.sources)) / self.batch_size

    @property
    def largest_token(self) -> int:
        """What shorter rows are filled up with included."""
        return max(self._padding, *(source.largest_token for source in self.sources))

    @property
    def content(self) -> str:
        """Changes with any token, with what is drawn, and with how often."""
        found = [(_content(source), weight) for source, weight in zip(self.sources, self.weights, strict=True)]
        return sha256(repr((found, self._packed_to)).encode()).hexdigest()


def _rows(source) -> float:
    return len(source) if isinstance(source, Conversations) else source.steps_of_epoch * source.batch_size


def _content(source) -> str:
    return source.tokens.digest if isinstance(source, Conversations) else source.content
