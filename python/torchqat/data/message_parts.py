"""Messages whose content is a list of parts, as chat templates of models that read images expect it."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from torchqat.errors import UserError

Message = dict[str, Any]

# Parts that stand for something that is no text, by how their types begin: without it, a template writes a mark of nothing.
_NO_TEXT = ("image", "audio", "video", "input_image", "input_audio", "input_video")


def written_messages(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> tuple[Message, ...]:
    """``messages`` in the form that a chat template takes: parts, where it writes their texts, or else the text of the part.

    Args:
        messages: Of one conversation.
        render: What the template writes for messages.

    Raises:
        UserError: There is an image or a sound, or several parts under a template that takes none: how they would be
            joined is nowhere laid down. Or as ``render``.
    """
    in_parts = [message for message in messages if isinstance(message.get("content"), list)]
    if not in_parts:
        return tuple(messages)
    for message in in_parts:
        _check_parts(message)
    try:
        text = render(messages)
    except UserError:  # such as a template that adds the content to a text
        text = ""
    return tuple(message if _is_written(message, text) else _as_text(message) for message in messages)


def _check_parts(message: Message) -> None:
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
            raise UserError(
                'A part of a message must have a "type", and one of type text a "text", but a message of '
                f"{message['role']} has {str(part)[:80]}."
            )
        if kind.startswith(_NO_TEXT):
            raise UserError(
                "Messages must be text, which is all that a language model learns from, but a message of "
                f"{message['role']} has a part of type {kind}: leave such conversations out."
            )


def _is_written(message: Message, text: str) -> bool:
    """Whether ``text``, the template's, has what the parts of ``message`` say and not how Python or JSON writes a list."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return True
    as_lists = (str(parts), json.dumps(parts), json.dumps(parts, ensure_ascii=False))
    said = [part["text"].strip() for part in parts if part["type"] == "text"]
    return bool(text) and not any(found in text for found in as_lists) and all(words in text for words in said)


def _as_text(message: Message) -> Message:
    parts = message["content"]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return {**message, "content": parts[0]["text"]}
    raise UserError(
        "The tokenizer's chat template takes a message's content as one text, but a message of "
        f"{message['role']} has {len(parts)} parts ({', '.join(part['type'] for part in parts)}): join them."
    )
