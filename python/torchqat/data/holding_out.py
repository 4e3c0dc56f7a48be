"""Which documents are trained on, and which are held out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torchqat.data.documents import Conversation, Document, summary_of
from torchqat.data.sources import Source, documents, no_text
from torchqat.errors import UserError

# Every n-th document is held out.
HELD_OUT = 10

PASSED_OVER, TRAIN, HELD = 0, 1, 2


@dataclass(frozen=True)
class Parts:
    """What becomes of the documents of a source.

    Attributes:
        of: ``PASSED_OVER``, ``TRAIN`` or ``HELD`` for each of its documents.
        cut: The character with which the held-out end of a single text begins; 0 where whole documents are held out.
        conversations: Whether the documents are such.
        digests: One of each document, 16 bytes.
    """

    of: bytes
    cut: int
    conversations: bool
    digests: tuple[bytes, ...]

    def digests_of(self, part: int) -> list[bytes]:
        """Those of the documents of ``part``; of a single text that is cut, its own in both."""
        return [digest for digest, one in zip(self.digests, self.of, strict=True) if one == part or (self.cut and one)]

    def select(self, found: Iterable[Document], part: int) -> Iterator[Document]:
        """Those of ``found``, all documents of the source, that are of ``part``."""
        for place, document in enumerate(found):
            if self.cut and self.of[place] == TRAIN:
                yield _between(document, 0, self.cut) if part == TRAIN else _between(document, self.cut, None)
            elif self.of[place] == part:
                yield document


def parts_of(source: Source, whole: bool = False) -> Parts:
    """Every tenth document is held out, or the last tenth of a single text; no copy of what is trained on.

    Reads the source once, and holds 16 bytes a document.

    Args:
        source: Any.
        whole: Nothing is held out.

    Raises:
        UserError: There is nothing to train on or to hold out, or there are both texts and conversations.
    """
    digests, lengths, blank, kinds = [], [], [], set()
    for document in documents(source):
        kinds.add(isinstance(document, Conversation))
        if len(kinds) > 1:
            raise UserError(f"data must be texts or conversations, but {source.path} has both.")
        summary = summary_of(document)
        digests.append(summary.digest)
        lengths.append(summary.length)
        blank.append(summary.is_blank)
    there = [place for place, is_blank in enumerate(blank) if not is_blank]
    if not there:
        raise UserError(no_text(source))
    parts = bytearray(len(digests))
    for place in there:
        parts[place] = TRAIN
    if whole:
        return Parts(bytes(parts), 0, True in kinds, tuple(digests))
    if len(there) == 1 and kinds == {False}:
        length = lengths[there[0]]
        return Parts(bytes(parts), max(1, length - length // HELD_OUT), False, tuple(digests))
    if len(there) == 1:
        raise UserError(f"data must have at least 2 examples to hold some out, but {source.path} has 1.")
    _hold_out(parts, there, digests, source)
    return Parts(bytes(parts), 0, True in kinds, tuple(digests))


def _hold_out(parts: bytearray, there: list[int], digests: list[bytes], source: Source) -> None:
    held = there[HELD_OUT // 2 :: HELD_OUT] or there[-1:]
    for place in held:
        parts[place] = HELD
    trained_on = {digests[place] for place in there if parts[place] == TRAIN}
    for place in held:
        if digests[place] in trained_on:
            parts[place] = PASSED_OVER
    if HELD not in parts:
        raise UserError(
            f"data must have text to hold out, but all documents of {source.path} are copies of each other."
        )


def _between(document: Iterable[str], begin: int, end: int | None) -> Iterator[str]:
    """The characters of ``document`` from ``begin`` to ``end``."""
    place = 0
    for piece in document:
        found = piece[max(0, begin - place) : None if end is None else max(0, end - place)]
        place += len(piece)
        if found:
            yield found
