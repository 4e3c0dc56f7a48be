"""Conversations as tokens, as the tokenizer's chat template writes them, and which of these are answers."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torchqat.data.documents import WITHOUT_CONTENT, Conversation
from torchqat.data.message_parts import written_messages
from torchqat.errors import UserError, first_line

# Of what a message says: characters that are looked for, and what could be said in its place.
_TAIL, _OTHER = 32, "another"
_GENERATION = re.compile(r"\{%-?\s*generation\b")


def tokens_of(tokenizer: Any, conversation: Conversation, loss_on: str) -> tuple[list[int], list[bool]]:
    """The tokens of ``conversation`` and which of them count.

    Args:
        tokenizer: A fast one, with a chat template where there are messages.
        conversation: Messages, or a prompt and a completion, which the end-of-text token follows.
        loss_on: ``answers``, what the assistant says or the completion; or ``all``.

    Raises:
        UserError: The tokenizer has no chat template, or its template does not show which tokens are answers, or does not
            take a message's parts.
    """
    if not conversation.messages:
        ids, counted = _completed(tokenizer, conversation)
    else:
        if not tokenizer.chat_template:
            raise UserError(
                "The messages of a conversation need a tokenizer with a chat template, but the model's has none; data may "
                'also be a "text", or a "prompt" and a "completion".'
            )
        messages = written_messages(
            conversation.messages, lambda found: _apply(tokenizer, conversation, found, tokenize=False)
        )
        ids, counted = _templated(tokenizer, replace(conversation, messages=messages), loss_on)
    return ids, counted if loss_on == "answers" else [True] * len(ids)


def _completed(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    text, end = conversation.prompt + conversation.completion, tokenizer.eos_token_id
    ids, places = _with_places(tokenizer, text, special=True)
    if ids and ids[-1] == end:  # some tokenizers close a text
        ids, places = ids[:-1], places[:-1]
    counted = [_overlaps(place, (len(conversation.prompt), len(text))) for place in places]
    return (ids, counted) if end is None else ([*ids, end], [*counted, True])


def _templated(tokenizer: Any, conversation: Conversation, loss_on: str) -> tuple[list[int], list[bool]]:
    whole = _apply(tokenizer, conversation, tokenize=False)
    _check_said(tokenizer, conversation, whole)
    if loss_on == "answers" and _GENERATION.search(str(tokenizer.chat_template)):
        found = _apply(tokenizer, conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]
    ids, places = _with_places(tokenizer, whole, special=False)
    spans = list(_answers(tokenizer, conversation, whole)) if loss_on == "answers" else []
    return ids, [any(_overlaps(place, span) for span in spans) for place in places]


def _check_said(tokenizer: Any, conversation: Conversation, whole: str) -> None:
    """Whether ``whole``, the text of all messages, depends on what each says, however the template changes it.

    Where a message calls a tool or thinks, a template may write that alone.
    """
    messages = conversation.messages
    for place, message in enumerate(messages):
        content = None if any(message.get(key) for key in WITHOUT_CONTENT) else message.get("content")
        if not isinstance(content, str) or not content.strip() or content.strip()[-_TAIL:] in whole:
            continue
        other = [*messages[:place], {**message, "content": _OTHER}, *messages[place + 1 :]]
        if _apply(tokenizer, conversation, other, tokenize=False) == whole:
            raise UserError(
                f"The tokenizer's chat template leaves out what message {place + 1} of {len(messages)} says, of "
                f"{message['role']}: give the tokenizer another, or the data without such messages."
            )


def _overlaps(place: tuple[int, int], span: tuple[int, int]) -> bool:
    """As transformers finds the tokens of what a template marks."""
    return place[1] > span[0] and place[0] < span[1]


def _answers(tokenizer: Any, conversation: Conversation, whole: str) -> Iterable[tuple[int, int]]:
    """Where in ``whole``, the text of all messages, answers begin and end."""
    messages = conversation.messages
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, conversation, messages[:place], tokenize=False, add_generation_prompt=True)
        until = _apply(tokenizer, conversation, messages[: place + 1], tokenize=False)
        if not (whole.startswith(until) and until.startswith(before)):
            raise UserError(
                "data.loss_on: answers needs a chat template that writes the beginning of a conversation as it writes the "
                "whole, or that marks answers by {% generation %}, but the tokenizer's does neither at message "
                f"{place + 1} of {len(messages)}; data.loss_on: all needs none."
            )
        yield len(before), len(until)


def _apply(tokenizer: Any, conversation: Conversation, messages: Any = None, **options: Any) -> Any:
    found = conversation.messages if messages is None else messages
    try:
        return tokenizer.apply_chat_template(list(found), tools=conversation.tools, **options)
    except Exception as error:  # what templates raise by themselves among them
        roles = ", ".join(message["role"] for message in conversation.messages)
        raise UserError(f"The tokenizer's chat template refuses messages of {roles}: {first_line(error)}") from error


def _with_places(tokenizer: Any, text: str, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens, and with which character each begins and ends."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"Conversations need a tokenizer that tells where its tokens begin, but {type(tokenizer).__name__} does not: "
            "give the model a tokenizer.json."
        )
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), list(found["offset_mapping"])
