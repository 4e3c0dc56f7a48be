"""Text on disk, all of it in memory, and examples: what is trained on, and what is held out from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from torchqat._library import Recipe
from torchqat.data.examples import Examples
from torchqat.data.holding_out import HELD, HELD_OUT, TRAIN, Parts, parts_of
from torchqat.data.sources import Source, documents
from torchqat.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out from them."""

    train: list[str]
    held_out: list[str]


def load_corpus(sources: str | Sequence[Source], evaluation: str = "") -> Corpus:
    """The texts of ``sources``, one path or several sources.

    Of each, every tenth document is held out in the order of its names, or the last tenth of a single one. A copy of a
    document that is trained on is not held out. With ``evaluation``, another path, nothing is held out from ``sources``.

    Raises:
        UserError: A source is missing, has no text, or has conversations.
    """
    found = [Source(sources)] if isinstance(sources, str) else sources
    train, held = [], []
    for source in found:
        parts = parts_of(source, whole=bool(evaluation))
        train += _texts(source, parts, TRAIN)
        held += [] if evaluation else _texts(source, parts, HELD)
    if evaluation:
        other = Source(evaluation)
        held = _texts(other, parts_of(other, whole=True), TRAIN)
    return Corpus(train, held)


def _texts(source: Source, parts: Parts, part: int) -> list[str]:
    if parts.conversations:
        raise UserError(
            f"data must be texts here, but {source.path} has conversations, from which neither a scratch model nor a "
            "sentence encoder learns."
        )
    return ["".join(document) for document in parts.select(documents(source), part)]


def trained_and_held_out(recipe: Recipe, read: Callable[[str, int], Examples]) -> tuple[Examples, Examples]:
    """Examples to train on, and those of ``data.evaluation.path`` or, where it names none, every tenth, held out.

    Args:
        recipe: Whose data are one path.
        read: Gives the examples of a path, cut off after so many tokens.

    Raises:
        UserError: As ``read``; or there are fewer than 20 to hold some out from.
    """
    examples = read(recipe.data.train, recipe.train.sequence_length)
    if recipe.data.evaluation_path:
        return examples, read(recipe.data.evaluation_path, recipe.data.evaluation.sequence_length)
    places = torch.arange(len(examples))
    if len(examples) < 2 * HELD_OUT:
        raise UserError(f"data must have at least {2 * HELD_OUT} examples to hold some out, but has {len(examples)}.")
    chosen = places % HELD_OUT == HELD_OUT // 2
    return examples.part(places[~chosen]), examples.part(places[chosen])
