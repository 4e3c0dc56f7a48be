"""A document: text, held in pieces however long it is, or a conversation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchqat.errors import UserError

# Characters of a text that are held at once; a piece ends with a line where lines are not as long.
_PIECE = 1 << 20
_LINE = 1 << 16


@dataclass(frozen=True)
class Conversation:
    """Messages, or a prompt and its completion, with the answers that are to be learned among them.

    Attributes:
        messages: Each with a ``role`` and a ``content``; empty of a prompt.
        prompt: What is given.
        completion: What is to be said.
        tools: What the template is told of tools, where the data have such.
    """

    messages: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    tools: Any = None


# The pieces of a text, or a conversation.
Document = Iterable[str] | Conversation


def document_of(row: Any, column: str) -> Document | None:
    """What the object ``row`` has in ``column``; if that is ``text`` and not there, its conversation. Else ``None``."""
    if not isinstance(row, dict):
        return None
    value = row.get(column)
    if isinstance(value, str):
        return cut(value)
    if value is None and column == "text":
        if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            return Conversation(prompt=row["prompt"], completion=row["completion"])
        value = row.get("messages")
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return Conversation(tuple(map(_without_none, value)), tools=row.get("tools"))
    return None


def form_rule(column: str) -> str:
    """What a row must have, in words."""
    if column != "text":
        return f'a "{column}", a text or messages, each with a "role" and a "content"'
    return 'a "text", with "messages", each with a "role" and a "content", or with a "prompt" and a "completion"'


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _without_none(message: dict[str, Any]) -> dict[str, Any]:
    """Tables fill what other messages have with ``None``, which templates take for something that is there."""
    return {key: value for key, value in message.items() if value is not None}


def cut(text: str) -> list[str]:
    """``text`` in pieces."""
    if len(text) <= _PIECE + _LINE:
        return [text]
    pieces, begin = [], 0
    while begin < len(text):
        end = begin + _PIECE
        line = text.find("\n", end, end + _LINE)
        end = line + 1 if line >= 0 else end
        pieces.append(text[begin:end])
        begin = end
    return pieces


def pieces_of_file(file: Path) -> Iterator[str]:
    """The text of ``file``.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open(file, encoding="utf-8", errors="replace") as content:
            while piece := content.read(_PIECE):
                yield piece + content.readline(_LINE)
    except OSError as error:
        raise UserError(f"data must be readable, but {file} is not: {error.strerror}.") from error


@dataclass(frozen=True)
class Summary:
    """What is known of a document once it was read.

    Attributes:
        digest: Changes with what it says.
        length: Characters.
        is_blank: Whether it says nothing.
    """

    digest: bytes
    length: int
    is_blank: bool


def summary_of(document: Document) -> Summary:
    """Reads ``document`` to its end."""
    found, length, is_blank = blake2b(digest_size=16), 0, True
    pieces = [repr(document)] if isinstance(document, Conversation) else document
    for piece in pieces:
        found.update(piece.encode("utf-8", "replace"))
        length += len(piece)
        is_blank = is_blank and not piece.strip()
    return Summary(found.digest(), length, is_blank)
