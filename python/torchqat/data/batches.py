"""Batches of a run: random windows or examples to train on, and those spread evenly to calibrate and to measure on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqat._library import Recipe
from torchqat.data.batch import Batch, generator_at, largest_of, length_of, size_of
from torchqat.data.examples import ExampleBatches, Examples
from torchqat.data.mixed_batches import MixedBatches
from torchqat.data.seen import seen_examples
from torchqat.data.token_file import Tokens
from torchqat.data.windows import begun
from torchqat.errors import UserError

EXAMPLES_AT_ONCE = 32


class Batches:
    """Random windows of a token stream. Batch ``step`` is a function of the seed and the step alone.

    Args:
        tokens: int64 ``[n]`` where it is a tensor.
        batch_size: Rows.
        sequence_length: Columns; at most ``n``.
        seed: Any integer.
        first: What each window begins with before its own tokens.
    """

    def __init__(
        self, tokens: Tokens | Tensor, batch_size: int, sequence_length: int, seed: int, first: int | None = None
    ):
        self.tokens = tokens if isinstance(tokens, Tokens) else Tokens.of(tokens)
        if len(self.tokens) < sequence_length:
            raise UserError(
                f"data must have at least the {sequence_length} tokens of one sequence, but has {len(self.tokens)}: give "
                "more text, or a smaller sequence_length."
            )
        self.batch_size, self.sequence_length, self.seed, self.first = batch_size, sequence_length, seed, first

    def __getitem__(self, step: int) -> Tensor:
        return self.draw(self.batch_size, generator_at(self.seed, step))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` windows, int64 ``[count, sequence_length]``."""
        last = len(self.tokens) - self.sequence_length + (self.first is not None)
        starts = torch.randint(0, last + 1, (count,), generator=generator)
        return begun(self.tokens, starts, self.sequence_length, self.first)

    @property
    def steps_of_epoch(self) -> float:
        """Steps that take as many tokens as there are."""
        return len(self.tokens) / (self.batch_size * (self.sequence_length - (self.first is not None)))

    @property
    def largest_token(self) -> int:
        return max(self.tokens.largest, self.first or 0)

    @property
    def content(self) -> str:
        """Changes with any token."""
        return f"{self.tokens.digest} {self.first}"


def shortfall(batches: list[Batch], samples: int, sequence_length: int) -> str:
    """A sentence where calibration data are fewer or, if text in windows, shorter than asked; else empty."""
    count = sum(size_of(batch) for batch in batches)
    windowed = bool(batches) and isinstance(batches[0], Tensor)
    if not windowed:
        found = f"Calibration data are {count} examples, less than the {samples} that data.calibration asks for."
        return found if count < samples else ""
    length = batches[0].shape[1]
    if count >= samples and length >= sequence_length:
        return ""
    return (
        f"Calibration data give {count} sequences of {length} tokens, less than the {samples} of {sequence_length} that "
        "data.calibration asks for."
    )


@dataclass(frozen=True)
class Data:
    """What a run reads: training batches, calibration batches and held-out batches.

    Validation batches choose the best state of a training; none of them is reported.

    Attributes:
        notes: What the user should know of the data, one sentence each.
        counted: Which predictions count, in words that follow their number; empty where all do.
    """

    train: Batches | ExampleBatches | MixedBatches
    calibration: list[Batch]
    evaluation: list[Batch]
    validation: list[Batch]
    notes: tuple[str, ...] = ()
    counted: str = ""

    @property
    def largest_token(self) -> int | None:
        """The largest of all that the model is given; ``None`` where data are no tokens."""
        if self.train.largest_token is None:
            return None
        return max([self.train.largest_token, *map(largest_of, self.calibration + self.evaluation + self.validation)])

    def longest(self, trains: bool = True) -> int:
        """Tokens of the longest sequence that is given, with windows in training if it ``trains``; 0 without tokens."""
        batches = self.calibration + self.evaluation + self.validation
        window = getattr(self.train, "sequence_length", 0) if trains else 0
        return max([window, *map(length_of, batches)])

    @property
    def measured_rows(self) -> int:
        """Sequences or examples that are reported."""
        return sum(map(size_of, self.evaluation))

    @property
    def given(self) -> list[Batch]:
        """All inputs and labels, of data that are such; else what is measured on."""
        examples = self.train.examples if isinstance(self.train, ExampleBatches) else None
        all_given = examples is not None and isinstance(examples.inputs, Tensor)
        return [*self.evaluation, *self.validation, *([(examples.inputs, examples.labels)] if all_given else [])]

    @classmethod
    def of_examples(cls, recipe: Recipe, train: Examples, others: Examples, at_once: int = EXAMPLES_AT_ONCE) -> "Data":
        """Batches of ``train``; of ``others``, every second example is reported, and the rest choose the best state.

        ``at_once``: how many are calibrated and measured on in one batch.
        """
        settings, samples = recipe.train, recipe.data
        places = torch.arange(len(others))
        return cls(
            ExampleBatches(train, settings.batch_size * settings.gradient_accumulation, settings.seed),
            train.unpadded(spread(torch.arange(len(train)), samples.calibration.samples), at_once),
            others.batches(spread(places[::2], samples.evaluation.samples), at_once),
            others.batches(spread(places[1::2], samples.evaluation.samples), at_once),
            tuple(seen_examples(train, others, (samples.train, samples.evaluation_path or samples.train))),
        )


def spread_batches(examples: Examples, samples: int = 0, at_once: int = EXAMPLES_AT_ONCE) -> list[Batch]:
    """Batches of ``examples``, or of ``samples`` that are spread evenly over them; all where 0."""
    return examples.batches(spread(torch.arange(len(examples)), samples or len(examples)), at_once)


def spread(places: Tensor, count: int) -> Tensor:
    """``count`` of ``places``, evenly spread; all if there are no more."""
    if len(places) <= count:
        return places
    return places[torch.arange(count) * len(places) // count]
