"""A document: text, held in pieces however long it is, or a conversation."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torchqat.errors import UserError

# Characters of a piece, and among how many more an end for it is looked for.
_PIECE = 1 << 15
_REACH = 1 << 13
_READ = 1 << 18
# Where tokenizers, as a rule, have no token over it: a line that ends with a letter or a digit.
_BORDER = re.compile(r"(?<=[^\W_])\n")
# What messages say that need no content.
WITHOUT_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


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
    """Its content is a text or parts, and may be missing beside what is said without one; templates print all else."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    if content is None:
        return any(value.get(key) for key in WITHOUT_CONTENT)
    return isinstance(content, str) or (isinstance(content, list) and bool(content))


def _without_none(message: dict[str, Any]) -> dict[str, Any]:
    """Tables fill what other messages and parts have with ``None``, which templates take for something that is there."""
    found = {key: value for key, value in message.items() if value is not None}
    if isinstance(found.get("content"), list):
        found["content"] = unfilled(found["content"])
    return found


def unfilled(value: Any) -> Any:
    """A cell of a table without what its columns fill with ``None`` at any depth, such as arguments of other tools."""
    if isinstance(value, dict):
        return {key: unfilled(one) for key, one in value.items() if one is not None}
    return list(map(unfilled, value)) if isinstance(value, list) else value


def cut(text: str) -> list[str]:
    """``text`` in pieces, which tokenizers take faster, and in less memory, than the whole."""
    pieces, begin = [], 0
    while len(text) - begin > _PIECE + _REACH:
        border = _BORDER.search(text, begin + _PIECE, begin + _PIECE + _REACH)
        end = border.start() if border else begin + _PIECE
        pieces.append(text[begin:end])
        begin = end
    return [*pieces, text[begin:]] if begin < len(text) or not pieces else pieces


def pieces_of_file(file: Path) -> Iterator[str]:
    """The text of ``file``, of which little is held at once.

    Raises:
        UserError: It cannot be read, or is not in UTF-8.
    """
    rest = ""
    try:
        with open(file, encoding="utf-8-sig") as content:
            while read := content.read(_READ):
                if "\0" in read:
                    raise UserError(no_utf8(file))
                *pieces, rest = cut(rest + read)
                yield from pieces
    except OSError as error:
        raise UserError(f"data must be readable, but {file} is not: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(no_utf8(file)) from error
    yield rest


def no_utf8(file: Path) -> str:
    """What is said of a file of bytes that are no text, or text of another encoding."""
    return f"data must be text in UTF-8, but {file} is not: convert it, or leave it out."


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
