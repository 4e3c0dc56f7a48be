"""Examples of a fixed number, each a row: labelled inputs of a classifier, sentences of an encoder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchqat.data.batch import Batch, digest, generator_at
from torchqat.errors import UserError

# The label of tokens that nothing is to be said of, as torch and transformers have it.
NO_LABEL = -100


@dataclass(frozen=True)
class Examples:
    """Inputs and, where there are, labels.

    Attributes:
        inputs: A tensor with a row for each, or token ids of each, int64.
        labels: ``[n]``, int64 or, of what gives a number, any; floating ``[n, classes]``, 1 for each class that applies;
            int64 for the tokens of each; or ``None``.
        padding: What fills token ids up to the length of the longest of a batch.
        token_types: Of each, which of two texts its tokens are of; ``None`` where there is one, or models are not told.
        cut: Tokens after which texts were cut off; 0 where inputs are none.
    """

    inputs: Tensor | Sequence[Tensor]
    labels: Tensor | Sequence[Tensor] | None = None
    padding: int = 0
    token_types: Sequence[Tensor] | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, places: Tensor) -> Batch:
        """The examples at ``places``: a tuple of inputs and labels, or token ids with their mask by name."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[places], self.labels[places]
        rows = [self.inputs[place] for place in places.tolist()]
        ids = padded(rows, self.padding)
        lengths = torch.tensor([len(row) for row in rows])
        found = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
        if self.token_types is not None:
            found["token_type_ids"] = padded([self.token_types[place] for place in places.tolist()], 0)
        labels = _at(self.labels, places)
        if labels is None:
            return found
        return {**found, "labels": labels if isinstance(labels, Tensor) else padded(labels, NO_LABEL)}

    def batches(self, places: Tensor, batch_size: int) -> list[Batch]:
        """Those at ``places``, in order."""
        return [self.batch(chunk) for chunk in places.split(batch_size)]

    def unpadded(self, places: Tensor, batch_size: int) -> list[Batch]:
        """Those at ``places`` in batches of one length each, so that no padding is calibrated on."""
        if isinstance(self.inputs, Tensor):
            return self.batches(places, batch_size)
        by_length: dict[tuple[int, ...], list[int]] = {}
        for place in places.tolist():
            by_length.setdefault(self._lengths(place), []).append(place)
        return [b for length in sorted(by_length) for b in self.batches(torch.tensor(by_length[length]), batch_size)]

    def _lengths(self, place: int) -> tuple[int, ...]:
        """What examples of a batch without padding must have in common."""
        return (len(self.inputs[place]),)

    def part(self, places: Tensor) -> "Examples":
        """Those at ``places``."""
        rows = {name: _at(getattr(self, name), places) for name in ("inputs", "labels", "token_types")}
        return replace(self, **rows)

    def identities(self, cut: int = 0) -> list[bytes]:
        """Digests that are the same of two examples whose inputs are, in order.

        Args:
            cut: Where those that they are compared with were cut off after so many tokens, and these not: the last two
                there, which may be added ones, do not count.
        """
        if isinstance(self.inputs, Tensor):
            return [digest(row) for row in self.inputs]
        return identities_of(self.inputs, cut)

    @property
    def largest_token(self) -> int | None:
        """The largest that models are given; ``None`` where inputs are no tokens."""
        if isinstance(self.inputs, Tensor):
            return None
        return max((int(row.max()) for row in self.inputs if len(row)), default=0)

    def everything(self) -> Batch:
        """All of them in one batch, or what changes with any element of it."""
        return self.batch(torch.arange(len(self)))


def _at(rows: Tensor | Sequence[Tensor] | None, places: Tensor) -> Tensor | list[Tensor] | None:
    if rows is None or isinstance(rows, Tensor):
        return None if rows is None else rows[places]
    return [rows[place] for place in places.tolist()]


def identities_of(rows: Sequence[Tensor], cut: int) -> list[bytes]:
    """As ``Examples.identities``, of token ids."""
    return [digest(row[: max(1, cut - 2)] if 0 < cut <= len(row) else row) for row in rows]


def padded(rows: list[Tensor], value: int) -> Tensor:
    """``rows`` one below the other, ``value`` after the end of those that are shorter."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


class ExampleBatches:
    """Random examples. Batch ``step`` is a function of the seed and the step alone."""

    def __init__(self, examples: Examples, batch_size: int, seed: int):
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    def __getitem__(self, step: int) -> Batch:
        generator = generator_at(self.seed, step)
        count = min(self.batch_size, len(self.examples))
        return self.examples.batch(torch.randperm(len(self.examples), generator=generator)[:count])

    @property
    def steps_of_epoch(self) -> float:
        """Steps that take as many examples as there are."""
        return len(self.examples) / min(self.batch_size, len(self.examples))

    @property
    def largest_token(self) -> int | None:
        """The largest of all examples; ``None`` where these are no tokens."""
        return self.examples.largest_token

    @property
    def content(self) -> str:
        """Changes with any element of an example."""
        return digest(self.examples.everything()).hex()


def check_examples(source: str, found: Any) -> Examples:
    """What a function of the user's returned.

    Raises:
        UserError: It is not a tensor of inputs and a tensor of as many labels, int64 or floating, or floating ones for each
            class; or an element of these is NaN or infinite.
    """
    good = isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(x, Tensor) for x in found)
    if (
        not good
        or not (found[1].dtype == torch.int64 or found[1].is_floating_point())
        or found[1].dim() not in ((1, 2) if found[1].is_floating_point() else (1,))
        or len(found[0]) != len(found[1])
        or not len(found[1])
    ):
        shape = (
            [tuple(x.shape) for x in found if isinstance(x, Tensor)]
            if isinstance(found, (tuple, list))
            else type(found)
        )
        raise UserError(
            f"data must be a function that returns inputs [n, ...] and int64 or floating labels [n], but {source} gave "
            f"{shape}."
        )
    for what, tensor in (("inputs", found[0]), ("labels", found[1])):
        _check_finite(source, what, tensor)
    return Examples(found[0].detach(), found[1].detach())


def _check_finite(source: str, what: str, tensor: Tensor) -> None:
    rows = (~torch.isfinite(tensor)).flatten(1).any(1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
    if bad := rows.nonzero().flatten().tolist():
        raise UserError(
            f"data must be finite, but {source} gave {what} that are NaN or infinite in {len(bad)} of {len(rows)} examples, "
            f"of which the first is {bad[0]}."
        )


def tokenized(
    tokenizer, texts: list[str], length: int, labels: Tensor | None = None, pairs: list[str] | None = None
) -> Examples:
    """Token ids of ``texts``, each with its pair where there are such, cut off after ``length`` of them."""
    coded = tokenizer(texts, pairs, truncation=True, max_length=length, verbose=False)
    types = coded.get("token_type_ids") if pairs is not None else None
    return Examples(_rows(coded["input_ids"]), labels, tokenizer.pad_token_id or 0, types and _rows(types), length)


def _rows(lists: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(row) for row in lists]


def paragraphs(documents: list[str]) -> list[str]:
    """The parts of ``documents`` between empty lines, each once."""
    found = [part.strip() for document in documents for part in re.split(r"\n\s*\n", document)]
    return list(dict.fromkeys(part for part in found if part))
