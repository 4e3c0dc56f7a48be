"""The data of a language model: texts and conversations, from one source or several."""

from collections.abc import Callable
from typing import Any

import torch

from torchqat._library import DataSection, Recipe
from torchqat.data.batch import Batch
from torchqat.data.batches import EXAMPLES_AT_ONCE, Batches, Data, spread
from torchqat.data.conversations import Conversations
from torchqat.data.mixed_batches import MixedBatches
from torchqat.data.seen import seen_notes
from torchqat.data.sources import Source
from torchqat.data.tokenized import Tokenized, tokenized_source
from torchqat.data.tokenizers import beginning
from torchqat.data.windows import held_out_windows, windows
from torchqat.errors import UserError

_LONG = 8  # rows of held-out conversations that are measured at once


def sources_of(data: DataSection) -> list[Source]:
    """What ``data.train`` names, one source or several."""
    if not data.sources:
        return [Source(data.train)]
    return [Source(one.path, one.subset, one.split, one.column, one.weight) for one in data.sources]


def load_data(recipe: Recipe, tokenizer: Any, say: Callable[[str], None] | None = None) -> Data:
    """The batches that ``recipe`` describes.

    Texts are learned and measured in windows of one stream, each beginning with what the tokenizer begins texts with;
    conversations each by themselves, as ``data.loss_on`` says, or several in a row with ``data.packing``.

    Args:
        recipe: Of a causal language model.
        tokenizer: The model's.
        say: Told of what takes time.

    Raises:
        UserError: There are no such data.
    """
    settings, first = recipe.data, beginning(tokenizer)
    sources, whole = sources_of(settings), bool(settings.evaluation_path)
    names, weights = [source.path for source in sources], [source.weight for source in sources]
    found = [tokenized_source(tokenizer, source, settings.loss_on, whole, say) for source in sources]
    other = (
        tokenized_source(tokenizer, Source(settings.evaluation_path), settings.loss_on, True, say) if whole else None
    )
    if settings.packing and not any(one.conversations for one in found):
        raise UserError("data.packing is of conversations, but data.train has texts, which fill their rows already.")
    made = [_to_train(one, name, recipe, first) for one, name in zip(found, names, strict=True)]
    calibration: list[Batch] = []
    for one, samples in zip(found, _shared(settings.calibration.samples, weights), strict=True):
        calibration += _to_calibrate(one, samples, settings.calibration.sequence_length, first)
    measured = [(one.held_out, one.conversations, name) for one, name in zip(found, names, strict=True)]
    if other is not None:
        measured = [(other.train, other.conversations, settings.evaluation_path)]
    evaluation, validation = [], []
    for one, samples in zip(measured, _shared(settings.evaluation.samples, [1.0] if whole else weights), strict=True):
        both = _to_measure(*one, samples, settings.evaluation.sequence_length, first)
        evaluation += both[0]
        validation += both[1]
    seen = seen_notes(list(zip(names, found, strict=True)), other and (settings.evaluation_path, other))
    return Data(
        made[0] if len(made) == 1 and isinstance(made[0], Batches) else _mixed(made, weights, recipe, tokenizer),
        calibration,
        evaluation,
        validation,
        (*(note for one, name in zip(made, names, strict=True) for note in notes_of(one, name)), *seen),
        counted_words(settings.loss_on, [conversations for _, conversations, _ in measured]),
    )


def _to_train(found: Tokenized, name: str, recipe: Recipe, first: int | None) -> Conversations | Batches:
    length = recipe.train.sequence_length
    if found.conversations:
        return Conversations(found.train, length, recipe.data.packing).check(name)
    return Batches(found.train, _rows_of_step(recipe), length, recipe.train.seed, first)


def _rows_of_step(recipe: Recipe) -> int:
    return recipe.train.batch_size * recipe.train.gradient_accumulation


def _mixed(made: list, weights: list[float], recipe: Recipe, tokenizer: Any) -> MixedBatches:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    packed_to = recipe.train.sequence_length if recipe.data.packing else 0
    return MixedBatches(made, weights, _rows_of_step(recipe), recipe.train.seed, padding, packed_to)


def _to_calibrate(found: Tokenized, samples: int, length: int, first: int | None) -> list[Batch]:
    if not found.conversations:
        return windows(found.train, samples, length, first=first)
    rows = Conversations(found.train, length)
    return rows.unpadded(spread(torch.arange(len(rows)), samples), EXAMPLES_AT_ONCE)


def _to_measure(tokens, conversations: bool, name: str, samples: int, length: int, first: int | None):
    """Batches to report on, and others to choose the best state by."""
    if not conversations:
        return held_out_windows(tokens, samples, length, first)
    rows = Conversations(tokens, length)
    if len(rows) < 2:
        raise UserError(
            f"data must have at least 2 conversations to measure on, but {name} has {len(rows)} that are held out and have "
            f"something to learn in their first {length} tokens."
        )
    places = torch.arange(len(rows))
    return [rows.unpadded(spread(part, samples), _LONG) for part in (places[::2], places[1::2])]


def _shared(samples: int, weights: list[float]) -> list[int]:
    """``samples`` in the shares of ``weights``, at least one of each."""
    return [max(1, round(samples * weight / sum(weights))) for weight in weights]


def notes_of(found: Conversations | Batches, name: str) -> list[str]:
    """What is left out or cut off of the source ``name``."""
    if not isinstance(found, Conversations):
        return []
    notes, rows = [], len(found.places) + found.left_out
    if found.left_out:
        notes.append(
            f"{found.left_out} of {rows} conversations of {name} have nothing to learn in their first {found.length} tokens "
            "and are left out."
        )
    if found.cut:
        notes.append(f"{found.cut} of {rows} conversations of {name} are cut off after {found.length} tokens.")
    return notes


def counted_words(loss_on: str, conversations: list[bool]) -> str:
    """Which predictions count, in words that follow their number; empty where all do, those of texts."""
    if not any(conversations):
        return ""
    which = "of answers" if loss_on == "answers" else "of conversations"
    return which if all(conversations) else f"{which} and texts"
