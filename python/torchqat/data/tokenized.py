"""Sources as tokens: made once, in a stream, kept in the cache under what they are of, and mapped into memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from torchqat.data.chat import tokens_of
from torchqat.data.documents import Document, cut
from torchqat.data.holding_out import HELD, TRAIN, parts_of
from torchqat.data.sources import Source, content_of, documents
from torchqat.data.token_file import Tokens, TokenWriter, read_tokens
from torchqat.data.tokenizers import content_of_tokenizer, vocabulary
from torchqat.files import cache_folder, pending_folder
from torchqat.progress import counted

# Characters that are tokenized at once.
_AT_ONCE = 1 << 18
# Of what is written there, and of how texts are cut, messages written and documents held out.
_VERSION = 5


@dataclass(frozen=True)
class Tokenized:
    """A source in tokens.

    Attributes:
        train: To train on.
        held_out: What is held out from it; of no row where nothing is.
        conversations: Whether each row is one; else all rows are one stream of text.
    """

    train: Tokens
    held_out: Tokens
    conversations: bool


def tokenized_source(
    tokenizer: Any,
    source: Source,
    loss_on: str = "answers",
    whole: bool = False,
    say: Callable[[str], None] | None = None,
) -> Tokenized:
    """``source`` in tokens, from the cache where it was tokenized before.

    Texts become one stream, the end-of-text token after each where there is one, without what the tokenizer begins with.

    Args:
        tokenizer: The model's.
        source: Texts or conversations.
        loss_on: Which tokens of conversations count, ``answers`` or ``all``.
        whole: Nothing is held out.
        say: Told when tokenizing begins.

    Raises:
        UserError: As ``documents`` and ``tokens_of``.
    """
    parts = [content_of(source), source.column, content_of_tokenizer(tokenizer), loss_on, str(whole), str(_VERSION)]
    folder = cache_folder() / "tokens" / sha256("\n".join(parts).encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of several processes, one tokenizes
        if not folder.is_dir():
            if say is not None:
                say(f"Tokenizing {source.path}")
            with pending_folder(folder) as pending:
                _write(pending, tokenizer, source, loss_on, whole)
    return Tokenized(read_tokens(folder / "train"), read_tokens(folder / "held_out"), (folder / "rows").is_file())


def _write(folder: Path, tokenizer: Any, source: Source, loss_on: str, whole: bool) -> None:
    parts = parts_of(source, whole)
    above = vocabulary(tokenizer)
    for name, part in (("train", TRAIN), ("held_out", HELD)):
        with TokenWriter(folder / name, above, parts.conversations, parts.digests_of(part)) as writer:
            if parts.conversations:
                for conversation in parts.select(counted(documents(source), f"Tokenizing {source.path}"), part):
                    writer.add(*tokens_of(tokenizer, conversation, loss_on))
                    writer.end_row()
            elif not (whole and part == HELD):
                texts = counted(documents(source), f"Tokenizing {source.path}")
                write_texts(writer, tokenizer, parts.select(texts, part))
    if parts.conversations:
        (folder / "rows").touch()


def write_texts(writer: "TokenWriter | _InMemory", tokenizer: Any, texts: Iterable[Document]) -> None:
    """A row for each of ``texts``, the end-of-text token at its end where there is one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for pieces in _portions(_with_ends(texts)):
        coded = tokenizer([piece for piece, _ in pieces], add_special_tokens=False, verbose=False)["input_ids"]
        for ids, (_, ends) in zip(coded, pieces, strict=True):
            writer.add([*ids, *end] if ends else ids)
            if ends:
                writer.end_row()


def _with_ends(texts: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """The pieces of all texts, and whether a text ends with each."""
    for text in texts:
        last = None
        for piece in text:
            if last is not None:
                yield last, False
            last = piece
        if last is not None:
            yield last, True


def _portions(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    found, size = [], 0
    for piece in pieces:
        found.append(piece)
        size += len(piece[0])
        if size > _AT_ONCE:
            yield found
            found, size = [], 0
    if found:
        yield found


class _InMemory:
    """What a ``TokenWriter`` does, without a file."""

    def __init__(self):
        self.parts: list[np.ndarray] = [np.empty(0, np.int64)]

    def add(self, ids: list[int]) -> None:
        self.parts.append(np.asarray(ids, np.int64))

    def end_row(self) -> None:
        pass


def tokenize(tokenizer: Any, documents: Sequence[str]) -> Tensor:
    """All documents as one stream in memory, int64 ``[n]``, the end-of-text token after each where there is one."""
    found = _InMemory()
    write_texts(found, tokenizer, map(cut, counted(documents, "Tokenizing")))
    return torch.from_numpy(np.concatenate(found.parts))
