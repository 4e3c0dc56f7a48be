"""Examples of a fixed number, each a row: labelled inputs of a classifier, sentences of an encoder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchqat.data.batch import Batch
from torchqat.data.jsonl import objects_of
from torchqat.errors import UserError


@dataclass(frozen=True)
class Examples:
    """Inputs and, where there are, labels.

    Attributes:
        inputs: A tensor with a row for each, or token ids of each, int64.
        labels: int64 ``[n]``, or ``None``.
        padding: What fills token ids up to the length of the longest of a batch.
    """

    inputs: Tensor | Sequence[Tensor]
    labels: Tensor | None = None
    padding: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, places: Tensor) -> Batch:
        """The examples at ``places``: a tuple of inputs and labels, or token ids with their mask by name."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[places], self.labels[places]
        rows = [self.inputs[place] for place in places.tolist()]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(row) for row in rows])
        found = {"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}
        return found if self.labels is None else {**found, "labels": self.labels[places]}

    def batches(self, places: Tensor, batch_size: int) -> list[Batch]:
        """Those at ``places``, in order."""
        return [self.batch(chunk) for chunk in places.split(batch_size)]

    def unpadded(self, places: Tensor, batch_size: int) -> list[Batch]:
        """Those at ``places`` in batches of one length each, so that no padding is calibrated on."""
        if isinstance(self.inputs, Tensor):
            return self.batches(places, batch_size)
        by_length: dict[int, list[int]] = {}
        for place in places.tolist():
            by_length.setdefault(len(self.inputs[place]), []).append(place)
        return [b for length in sorted(by_length) for b in self.batches(torch.tensor(by_length[length]), batch_size)]

    def part(self, places: Tensor) -> "Examples":
        """Those at ``places``."""
        inputs = self.inputs[places] if isinstance(self.inputs, Tensor) else [self.inputs[p] for p in places.tolist()]
        return Examples(inputs, None if self.labels is None else self.labels[places], self.padding)


class ExampleBatches:
    """Random examples. Batch ``step`` is a function of the seed and the step alone."""

    def __init__(self, examples: Examples, batch_size: int, seed: int):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        count = min(self.batch_size, len(self.examples))
        return self.examples.batch(torch.randperm(len(self.examples), generator=generator)[:count])

    def everything(self) -> Batch:
        """All of them in one batch."""
        return self.examples.batch(torch.arange(len(self.examples)))


def check_examples(source: str, found: Any) -> Examples:
    """What a function of the user's returned.

    Raises:
        UserError: It is not a tensor of inputs and an int64 tensor of as many labels.
    """
    good = isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(x, Tensor) for x in found)
    if (
        not good
        or found[1].dtype != torch.int64
        or found[1].dim() != 1
        or len(found[0]) != len(found[1])
        or not len(found[1])
    ):
        shape = (
            [tuple(x.shape) for x in found if isinstance(x, Tensor)]
            if isinstance(found, (tuple, list))
            else type(found)
        )
        raise UserError(
            f"data must be a function that returns inputs [n, ...] and int64 labels [n], but {source} gave {shape}."
        )
    return Examples(found[0], found[1])


def labelled_texts(path: Path) -> tuple[list[str], list[int]]:
    """Lines of jsonl with a ``text`` and a ``label``.

    Raises:
        UserError: The file is missing, or a line is of another form (it is named).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data must be a readable jsonl file or module:function, but {path} is not: {error}."
        ) from error
    found = objects_of(text, path, _is_labelled, 'a line must be {"text": ..., "label": index}')
    if not found:
        raise UserError(f"data must have an example, but {path} has none.")
    return [example["text"] for example in found], [example["label"] for example in found]


def _is_labelled(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return False
    return type(value.get("label")) is int and value["label"] >= 0


def tokenized(tokenizer, texts: list[str], length: int, labels: Tensor | None = None) -> Examples:
    """Token ids of ``texts``, cut off after ``length`` of them."""
    ids = tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]
    return Examples([torch.tensor(row) for row in ids], labels, tokenizer.pad_token_id or 0)


def paragraphs(documents: list[str]) -> list[str]:
    """The parts of ``documents`` between empty lines, each once."""
    found = [part.strip() for document in documents for part in re.split(r"\n\s*\n", document)]
    return list(dict.fromkeys(part for part in found if part))
