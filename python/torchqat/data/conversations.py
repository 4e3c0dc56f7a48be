"""Conversations as rows of a batch: padded to one length, or several in a row, which do not see each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from torchqat.data.batch import Batch
from torchqat.data.examples import NO_LABEL
from torchqat.data.packing import packed
from torchqat.data.token_file import Tokens
from torchqat.errors import UserError

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        ids: int64 ``[n]``.
        counted: bool ``[n]``, which of them are to be predicted.
        positions: int64 ``[n]``, from 0 on in each sequence.
    """

    ids: Tensor
    counted: Tensor
    positions: Tensor

    @classmethod
    def of(cls, ids: Tensor, counted: Tensor | None = None) -> "Row":
        """One sequence, whose first token nothing predicts."""
        counted = torch.ones(len(ids), dtype=torch.bool) if counted is None else counted.clone()
        counted[:1] = False
        return cls(ids, counted, torch.arange(len(ids)))

    @classmethod
    def joined(cls, rows: Sequence["Row"]) -> "Row":
        """One after the other."""
        return cls(*(torch.cat([getattr(row, name) for row in rows]) for name in ("ids", "counted", "positions")))


class Conversations:
    """Rows of tokens, cut off after ``length`` of them; those with nothing to learn in these are left out.

    Args:
        tokens: A row each.
        length: At most so many tokens of each.
        packing: Several in a row.

    Attributes:
        places: Which rows of ``tokens`` there are, in the order in which they are packed.
        left_out: How many have nothing to learn.
        cut: How many are longer.
    """

    def __init__(self, tokens: Tokens, length: int, packing: bool = False):
        self.tokens, self.length = tokens, length
        lengths, learns = np.diff(tokens.starts), _learning(tokens, length)
        order = np.flatnonzero(learns)
        self.left_out, self.cut = int((~learns).sum()), int((lengths[order] > length).sum())
        begins = np.arange(len(order) + 1)
        if packing and len(order):
            places, begins = packed(np.minimum(lengths[order], length), length)
            order = order[places]
        self.places, self._begins = order, begins

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._begins) - 1

    @property
    def largest_token(self) -> int:
        return self.tokens.largest

    def check(self, name: str) -> "Conversations":
        """Itself.

        Raises:
            UserError: None of those of the source ``name`` has anything to learn.
        """
        if not len(self):
            raise UserError(
                f"data must have something to learn in the first {self.length} tokens of a conversation, but {name} has "
                "nothing there; set a longer sequence_length, or data.loss_on: all."
            )
        return self

    def row(self, place: int) -> Row:
        places = self.places[self._begins[place] : self._begins[place + 1]].tolist()
        return Row.joined([Row.of(*self.tokens.row(one, self.length)) for one in places])

    def draw(self, count: int, generator: torch.Generator) -> list[Row]:
        """``count`` different rows, or, where there are fewer, any."""
        if count <= len(self):
            places = torch.randperm(len(self), generator=generator)[:count]
        else:
            places = torch.randint(0, len(self), (count,), generator=generator)
        return [self.row(place) for place in places.tolist()]

    def unpadded(self, places: Tensor, batch_size: int) -> list[Batch]:
        """Rows ``places`` in batches of one length each."""
        by_length: dict[int, list[Row]] = {}
        for place in places.tolist():
            row = self.row(place)
            by_length.setdefault(len(row.ids), []).append(row)
        found = []
        for _, rows in sorted(by_length.items()):
            found += [collated(rows[begin : begin + batch_size]) for begin in range(0, len(rows), batch_size)]
        return found


def _learning(tokens: Tokens, length: int) -> np.ndarray:
    """Whether there is something to predict in the first ``length`` tokens of each row, bool ``[rows]``."""
    starts = np.asarray(tokens.starts)
    ends = np.minimum(starts[1:], starts[:-1] + length)
    if tokens.counted is None:
        return ends - starts[:-1] > 1
    found = []
    for begin in range(0, tokens.rows, _ROWS_AT_ONCE):
        places = slice(begin, min(begin + _ROWS_AT_ONCE, tokens.rows))
        base, end = starts[places.start], starts[places.stop]
        sums = np.concatenate([[0], np.cumsum(tokens.counted[base:end])])
        firsts = np.minimum(starts[places] + 1, ends[places])  # nothing predicts the first token
        found.append(sums[ends[places] - base] > sums[firsts - base])
    return np.concatenate(found) if found else np.zeros(0, dtype=bool)


def collated(rows: Sequence[Row], padding: int = 0, packed_to: int = 0, per_row: float | None = None) -> Batch:
    """A batch of ``rows`` by name: ``input_ids``, ``labels``, which are -100 where nothing is to be predicted, and a mask.

    Args:
        rows: Of any lengths.
        padding: What fills shorter ones.
        packed_to: Tokens that all are filled up to, where a row may have several sequences: these begin where
            ``position_ids`` begin again, and ``text`` says what is no padding, where an ``attention_mask`` would be taken
            for that of one sequence. 0 where each is one.
        per_row: What the number of predictions in a row is on average, in all of the step's batch: ``predictions``.
    """

    def filled(name: str, value: int) -> Tensor:
        found = pad_sequence([getattr(row, name) for row in rows], batch_first=True, padding_value=value)
        return torch.nn.functional.pad(found, (0, max(0, packed_to - found.shape[1])), value=value)

    ids, counted = filled("ids", padding), filled("counted", 0)
    is_text = torch.arange(ids.shape[1]) < torch.tensor([len(row.ids) for row in rows])[:, None]
    found = {"input_ids": ids, "labels": ids.masked_fill(~counted, NO_LABEL)}
    if packed_to:
        found |= {"position_ids": filled("positions", 0), "text": is_text}
    else:
        found["attention_mask"] = is_text.long()
    if per_row is not None:
        found["predictions"] = torch.full((len(rows),), per_row)
    return found
