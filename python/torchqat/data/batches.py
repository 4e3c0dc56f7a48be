"""Batches of a run: random windows to train on, and windows or examples spread evenly to calibrate and to measure on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqat._library import Recipe
from torchqat.data.batch import Batch, size_of
from torchqat.data.corpus import Corpus
from torchqat.data.examples import ExampleBatches, Examples
from torchqat.errors import UserError

_EXAMPLES_AT_ONCE = 32


class Batches:
    """Random windows of a token stream. Batch ``step`` is a function of the seed and the step alone.

    Args:
        tokens: int64 ``[n]``.
        batch_size: Rows.
        sequence_length: Columns; at most ``n``.
        seed: Any integer.
    """

    def __init__(self, tokens: Tensor, batch_size: int, sequence_length: int, seed: int):
        if tokens.numel() < sequence_length:
            raise UserError(
                f"data must have at least sequence_length = {sequence_length} tokens, but has {tokens.numel()}."
            )
        self.tokens, self.batch_size, self.sequence_length, self.seed = tokens, batch_size, sequence_length, seed

    def __getitem__(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        last = self.tokens.numel() - self.sequence_length
        starts = torch.randint(0, last + 1, (self.batch_size,), generator=generator)
        return self.tokens[starts[:, None] + torch.arange(self.sequence_length)]

    def everything(self) -> Tensor:
        """All that batches are made from."""
        return self.tokens


def windows(
    tokens: Tensor, samples: int, sequence_length: int, batch_size: int = 8, between: bool = False
) -> list[Tensor]:
    """Up to ``samples`` windows spread evenly over ``tokens``, in batches ``[<= batch_size, sequence_length]``.

    ``between``: they lie halfway between those that would be taken otherwise.
    """
    if tokens.numel() < 2:
        raise UserError(f"held-out data must have at least 2 tokens, but has {tokens.numel()}.")
    length = min(sequence_length, tokens.numel())
    count = min(samples, tokens.numel() // length)
    stride = (tokens.numel() - length) // max(1, count - 1) if count > 1 else 0
    first = stride // 2 if between else 0
    starts = [first + i * stride for i in range(count) if first + i * stride + length <= tokens.numel()]
    rows = torch.stack([tokens[start : start + length] for start in starts])
    return list(rows.split(batch_size))


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

    Validation batches choose the best state of a training; they lie between those that are reported.
    """

    train: Batches | ExampleBatches
    calibration: list[Batch]
    evaluation: list[Batch]
    validation: list[Batch]

    @classmethod
    def of_examples(cls, recipe: Recipe, train: Examples, others: Examples, at_once: int = _EXAMPLES_AT_ONCE) -> "Data":
        """Batches of ``train``; of ``others``, every second example is reported, and the rest choose the best state.

        ``at_once``: how many are calibrated and measured on in one batch.
        """
        settings, samples = recipe.train, recipe.data
        places = torch.arange(len(others))
        return cls(
            ExampleBatches(train, settings.batch_size * settings.gradient_accumulation, settings.seed),
            train.unpadded(_spread(torch.arange(len(train)), samples.calibration.samples), at_once),
            others.batches(_spread(places[::2], samples.evaluation.samples), at_once),
            others.batches(_spread(places[1::2], samples.evaluation.samples), at_once),
        )


def _spread(places: Tensor, count: int) -> Tensor:
    """``count`` of ``places``, evenly spread; all if there are no more."""
    if len(places) <= count:
        return places
    return places[torch.arange(count) * len(places) // count]


def tokenize(tokenizer, documents: list[str]) -> Tensor:
    """All documents as one stream, int64 ``[n]``, the end-of-text token between them where there is one."""
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for ids in tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]:
        stream.extend(ids)
        if end is not None:
            stream.append(end)
    return torch.tensor(stream, dtype=torch.int64)


def load_data(recipe: Recipe, corpus: Corpus, tokenizer) -> Data:
    """The batches that ``recipe`` describes, from ``corpus``."""
    train, settings = recipe.train, recipe.data
    tokens = tokenize(tokenizer, corpus.train)
    held_out = tokenize(tokenizer, corpus.held_out)
    calibration = settings.calibration
    return Data(
        Batches(tokens, train.batch_size * train.gradient_accumulation, train.sequence_length, train.seed),
        windows(tokens, calibration.samples, calibration.sequence_length),
        windows(held_out, settings.evaluation.samples, settings.evaluation.sequence_length),
        windows(held_out, settings.evaluation.samples, settings.evaluation.sequence_length, between=True),
    )
