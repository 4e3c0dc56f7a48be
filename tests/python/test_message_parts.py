"""Messages whose content is a list of parts: as a template takes them, and never as Python prints a list."""

import copy

import pytest
from chats import MARKED, TEMPLATE
from sentences import matches
from torchqat import UserError
from torchqat.data.chat import tokens_of
from torchqat.data.documents import Conversation, document_of

OF_PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' or 'image' in part else part.text }}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ADDED = TEMPLATE.replace("{{ message.content }}", "{{ 'a ' + message.content }}")
AS_JSON = TEMPLATE.replace("message.content", "message.content | tojson")
STRINGS = TEMPLATE.replace(
    "{{ message.content }}", "{% if message.content is string %}{{ message.content }}{% endif %}"
)


def text(*parts):
    return [{"type": "text", "text": part} for part in parts]


def conversation(question, answer):
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    return document_of(row, "text")


@pytest.fixture
def read(tokenizer):
    """What a template writes of a conversation, and of that, what counts as answers."""

    def found(template, conversation: Conversation, loss_on="answers"):
        chatty = copy.deepcopy(tokenizer)
        chatty.chat_template = template
        ids, counted = tokens_of(chatty, conversation, loss_on)
        return chatty.decode(ids), chatty.decode([one for one, counts in zip(ids, counted, strict=True) if counts])

    return found


@pytest.mark.parametrize("template", [TEMPLATE, MARKED, ADDED, AS_JSON, STRINGS, OF_PARTS])
def test_one_part_of_text_is_a_text(read, template):
    wanted = read(template, conversation("def function", 'return it\'s "argument"'))
    assert "argument" in wanted[1]
    assert read(template, conversation(text("def function"), text('return it\'s "argument"'))) == wanted
    assert read(template, conversation("def function", text('return it\'s "argument"'))) == wanted


def test_several_parts_are_as_the_template_writes_them(read):
    wanted = read(OF_PARTS, conversation("def function", "return argument"))
    assert read(OF_PARTS, conversation(text("def ", "function"), text("return", " argument"))) == wanted


@pytest.mark.parametrize("template", [TEMPLATE, ADDED, STRINGS])
def test_several_parts_are_not_joined_by_a_guess(read, template):
    wanted = matches("data.message-of-parts", role="user", count=2, types="text, text")
    with pytest.raises(UserError, match=wanted):
        read(template, conversation(text("def ", "function"), "return"), "all")


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_images_and_sounds_are_no_text(read, kind):
    """A template would write the mark of an image that the model is not given."""
    parts = [{"type": kind, kind: "a.png"}, *text("function")]
    with pytest.raises(UserError, match=matches("data.message-of-no-text", role="user", type=kind)):
        read(OF_PARTS, conversation(parts, "return"))


@pytest.mark.parametrize("part", ["function", {"text": "function"}, {"type": "text"}])
def test_a_part_of_another_form_is_a_sentence(read, part):
    with pytest.raises(UserError, match=matches("data.message-part", role="user", part=part)):
        read(OF_PARTS, conversation([part], "return"))


def test_what_tables_fill_parts_with_is_not_there(read):
    filled = [{"type": "text", "text": "function", "image": None}]
    assert read(OF_PARTS, conversation(filled, "return")) == read(OF_PARTS, conversation("function", "return"))
