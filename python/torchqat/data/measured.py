"""All of a source that is measured on, and nothing held out from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchqat.data.batch import Batch
from torchqat.data.batches import spread
from torchqat.data.conversations import Conversations
from torchqat.data.language import counted_words, notes_of
from torchqat.data.sources import Source
from torchqat.data.tokenized import tokenized_source
from torchqat.data.tokenizers import beginning
from torchqat.data.windows import TOKENS_AT_ONCE, all_windows


@dataclass(frozen=True)
class MeasuredOn:
    """What is measured on.

    Attributes:
        batches: Windows of text, or conversations.
        counted: Which predictions count, in words that follow their number; empty where all do.
        notes: What the user should know of it, one sentence each.
    """

    batches: list[Batch]
    counted: str
    notes: list[str]


def load_measured(
    tokenizer: Any,
    source: Source,
    sequence_length: int,
    samples: int = 0,
    loss_on: str = "answers",
    say: Callable[[str], None] | None = None,
) -> MeasuredOn:
    """All of ``source``, or ``samples`` windows or conversations spread evenly over it.

    Args:
        tokenizer: The model's.
        source: Texts or conversations.
        sequence_length: Tokens of a window, and after which conversations are cut off.
        samples: At most so many; all where 0.
        loss_on: Which tokens of conversations count, ``answers`` or ``all``.
        say: Told of what takes time.

    Raises:
        UserError: There is nothing to measure on.
    """
    found = tokenized_source(tokenizer, source, loss_on, whole=True, say=say)
    if not found.conversations:
        return MeasuredOn(all_windows(found.train, samples, sequence_length, beginning(tokenizer)), "", [])
    rows = Conversations(found.train, sequence_length).check(source.path)
    places = spread(torch.arange(len(rows)), samples or len(rows))
    batches = rows.unpadded(places, max(1, TOKENS_AT_ONCE // sequence_length))
    return MeasuredOn(batches, counted_words(loss_on, [True]), notes_of(rows, source.path))
