"""Documents and examples that are measured on and trained on, too: nothing is held out from one for the sake of another."""

from collections.abc import Sequence

import numpy as np

from torchqat.data.examples import Examples
from torchqat.data.tokenized import Tokenized

Named = tuple[str, Tokenized]


def seen_notes(train: Sequence[Named], measured: Named | None) -> list[str]:
    """A sentence for each source of which documents are trained on as part of another one.

    Args:
        train: Sources that are trained on, by name.
        measured: What alone is measured on; ``None`` where that is held out from each of ``train``.
    """
    others = train if measured is None else [measured]
    notes = []
    for name, found in others:
        theirs = found.held_out if measured is None else found.train
        # The same source twice holds out the same.
        also = [one for one in train if one[1].train.digest != found.train.digest or measured is not None]
        notes += [_note(name, theirs.documents, other, source.train.documents) for other, source in also]
    return [note for note in dict.fromkeys(notes) if note]


def seen_examples(train: Examples, measured: Examples, names: tuple[str, str]) -> list[str]:
    """A sentence where some of ``measured`` are trained on.

    Args:
        train: What is trained on.
        measured: What is not meant to be.
        names: Where each of them is from.
    """
    cut = 0 if train.cut == measured.cut else min(train.cut, measured.cut)
    trained = set(train.identities(cut))
    count = sum(one in trained for one in measured.identities(cut))
    return [_sentence(count, len(measured), "examples", names[1], names[0])] if count else []


def _note(name: str, measured: np.ndarray, other: str, trained: np.ndarray) -> str:
    count = int(np.isin(measured, trained).sum())
    if not count:
        return ""
    return _sentence(count, len(measured), "documents", name, other)


def _sentence(count: int, all_of_them: int, what: str, name: str, other: str) -> str:
    return (
        f"{count} of the {all_of_them} {what} of {name} that are measured on are trained on, too, in {other}: figures over "
        "them do not tell how the model does on new ones."
    )
