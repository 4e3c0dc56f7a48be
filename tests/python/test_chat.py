"""Conversations as tokens, and which of these are answers."""

import copy

import pytest
from chats import MARKED, TEMPLATE, messages
from sentences import matches
from torchqat import UserError
from torchqat.data.chat import tokens_of
from torchqat.data.documents import Conversation, document_of


@pytest.fixture
def chatty(tokenizer):
    found = copy.deepcopy(tokenizer)
    found.chat_template = TEMPLATE
    return found


def counted(tokenizer, conversation, loss_on="answers"):
    ids, marks = tokens_of(tokenizer, conversation, loss_on)
    assert len(ids) == len(marks)
    return ids, tokenizer.decode([token for token, mark in zip(ids, marks, strict=True) if mark])


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by beginnings", "marked"])
def test_answers_count(chatty, template):
    chatty.chat_template = template
    found = messages(3, turns=2)
    ids, answers = counted(chatty, Conversation(tuple(found)))
    assert ids == chatty.apply_chat_template(found, tokenize=True, return_dict=True)["input_ids"]
    assert answers == "".join(one["content"] + "\n" for one in found if one["role"] == "assistant")
    assert counted(chatty, Conversation(tuple(found)), "all")[1] == chatty.decode(ids)


def test_a_completion_counts_with_the_end_of_text(tokenizer):
    ids, answer = counted(tokenizer, Conversation(prompt="def function", completion="_3(argument)"))
    assert answer == "_3(argument)" + tokenizer.eos_token
    assert tokenizer.decode(ids) == "def function_3(argument)" + tokenizer.eos_token


def test_what_a_prompt_begins_with_is_no_answer(tokenizer):
    from tokenizers.processors import TemplateProcessing

    begun = copy.deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    ids, marks = tokens_of(begun, Conversation(prompt="", completion="return"), "answers")
    assert ids[0] == begun.bos_token_id and marks[0] is False and all(marks[1:])


def test_no_template_is_a_sentence(tokenizer):
    with pytest.raises(UserError, match=matches("data.no-template")):
        tokens_of(tokenizer, Conversation(tuple(messages(1))), "answers")


def test_a_template_that_does_not_show_answers_is_a_sentence(chatty):
    """One that tells earlier answers otherwise than the last, as those of models that think do."""
    chatty.chat_template = TEMPLATE.replace(
        "{{ message.content }}", "{% if loop.last and loop.index0 %}think {% endif %}{{ message.content }}"
    )
    with pytest.raises(UserError, match=matches("data.no-answers-in-template", place=2, count=4)):
        tokens_of(chatty, Conversation(tuple(messages(1, turns=2))), "answers")
    assert counted(chatty, Conversation(tuple(messages(1, turns=2))), "all")[0]


@pytest.mark.parametrize("loss_on", ["answers", "all"])
@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["by beginnings", "marked"])
@pytest.mark.parametrize(("role", "place"), [("assistant", 2), ("user", 1)])
def test_a_template_that_leaves_messages_out_is_a_sentence(chatty, template, loss_on, role, place):
    left = f"{{% if message.role != '{role}' %}}{{{{ message.content }}}}{{% endif %}}"
    chatty.chat_template = template.replace("{{ message.content }}", left)
    with pytest.raises(UserError, match=matches("data.template-leaves-out", role=role, place=place, count=2)):
        tokens_of(chatty, Conversation(tuple(messages(1))), loss_on)


def test_a_template_may_change_what_messages_say(chatty):
    found = Conversation(tuple(messages(1)))
    for change in ("| upper", "| trim", ".split('n')[-1]", ".split('n')[0]", "| replace('a', 'b')"):
        chatty.chat_template = TEMPLATE.replace("message.content", f"message.content {change}")
        assert counted(chatty, found)[1]
    called = {"role": "assistant", "content": "I look it up.", "tool_calls": [{"function": {"name": "f"}}]}
    chatty.chat_template = TEMPLATE.replace("message.content", "message.tool_calls or message.content")
    assert counted(chatty, Conversation((*found.messages, called)), "all")[1]


def test_what_a_template_refuses_is_a_sentence(chatty):
    chatty.chat_template = "{{ raise_exception('roles must') }}"
    with pytest.raises(UserError, match=matches("data.template-refuses", roles="user, assistant", why="roles must")):
        tokens_of(chatty, Conversation(tuple(messages(1))), "all")


def test_rows_are_texts_messages_or_completions():
    found = messages(1)
    assert document_of({"text": "a"}, "text") == ["a"] and document_of({"body": "a"}, "body") == ["a"]
    assert document_of({"messages": found}, "text").messages == tuple(found)
    assert document_of({"chat": found}, "chat").messages == tuple(found)
    assert document_of({"prompt": "a", "completion": "b"}, "text") == Conversation(prompt="a", completion="b")
    # Tables have a column for all that any message has.
    filled = [{**one, "tool_calls": None} for one in found]
    assert document_of({"messages": filled}, "text").messages == tuple(found)
    for bad in ({"text": 1}, {"messages": []}, {"messages": [{"from": "a"}]}, {"prompt": "a"}, {"body": "a"}, None):
        assert document_of(bad, "text") is None
    # An answer that is missing is not an empty one; beside a call of a tool none is due.
    for missing in ({"content": None}, {}, {"value": "a"}, {"content": None, "tool_calls": []}):
        assert document_of({"messages": [found[0], {"role": "assistant", **missing}]}, "text") is None
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    assert document_of({"messages": [found[0], called]}, "text") is not None
