"""Modelfiles, read as Ollama's parser reads them; their templates, run by a few lines that know what is used of Go's."""

import re

import pytest
import torchqat
from test_gguf import prepared
from torchqat.checkpoints.formats.ollama import turns_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# With a system message of its own, as Qwen2's.
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
CONVERSATIONS = [
    [("user", "a")],
    [("system", "be brief"), ("user", "a\nb")],
    [("user", "a"), ("assistant", "b"), ("user", " c ")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]
# Ollama's: a word, for parameters a name, and a value in three quotes, in one, or to the end of the line.
COMMAND = re.compile(r'(FROM|TEMPLATE|PARAMETER (\w+)) (?:"""(.*?)"""|"([^"\n]*)"|([^"\n]+))\n', re.S)


def commands(text):
    found = []
    for line in COMMAND.finditer(re.sub(r"^#.*\n", "", text, flags=re.M)):
        found.append((line[2] or line[1], next(value for value in line.groups()[2:] if value is not None)))
    return found


def run(template, messages):
    """What is used of Go's templates: if .System, range .Messages, if eq .Role, else, end, and fields."""
    system = "\n\n".join(content for role, content in messages if role == "system")
    whole = r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)"
    with_system, without, each, last = re.fullmatch(whole, template, re.S).groups()
    user, assistant = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)\{\{ end \}\}', each, re.S
    ).groups()
    turns = {"user": user, "assistant": assistant, "system": ""}
    said = "".join(turns[role].replace("{{ .Content }}", content) for role, content in messages)
    return (with_system.replace("{{ .System }}", system) if system else without) + said + last


@pytest.fixture
def chatty(tokenizer):
    yield tokenizer
    tokenizer.chat_template = None


def written(model, tokenizer, folder):
    return commands((torchqat.export(model, folder, "gguf", tokenizer) / "Modelfile").read_text(encoding="utf-8"))


@pytest.mark.parametrize("template", [CHATML, DEFAULT])
def test_a_modelfile_has_the_chat_template(template, chatty, tmp_path):
    chatty.chat_template = template
    lines = written(prepared(), chatty, tmp_path / "out")
    found = dict(lines)
    assert found["FROM"] == "./model.gguf" and (tmp_path / "out" / "model.gguf").is_file()
    # The tokenizer's own, and that of the model's configuration.
    ends = [chatty.eos_token_id, prepared().generation_config.eos_token_id]
    assert [value for name, value in lines if name == "stop"] == chatty.convert_ids_to_tokens(ends)
    assert int(found["num_ctx"]) == prepared().config.max_position_embeddings
    for said in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in said]
        expected = chatty.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert run(found["TEMPLATE"], said) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "the tokenizer has no chat template"),
        (CHATML.replace("m.content", "m.content | trim"), "more than to put text around messages"),
        (CHATML + "{{ strftime_now('%d') }}", "tells the date"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
            "takes no conversation of sys",
        ),
        (
            "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}|{% endif %}{% endfor %}",
            "leaves messages out",
        ),
        (CHATML.replace("<|im_end|>", '<"end">'), "signs that a Modelfile cannot have"),
        (
            "{% for m in messages %}{{ '[INST] ' if m.role == 'user' and not (loop.index0 == 1 and "
            "messages[0].role == 'system') }}"
            "{{ m.content }}{{ ' [/INST]' if m.role == 'user' }}{% endfor %}",
            "otherwise where it is the first",
        ),
    ],
)
def test_what_a_template_cannot_say_is_left_to_ollama(template, why, chatty, tmp_path):
    chatty.chat_template = template
    with pytest.raises(ValueError, match=why):
        turns_of(chatty)
    folder = torchqat.export(prepared(), tmp_path / "out", "gguf", chatty)
    text = (folder / "Modelfile").read_text(encoding="utf-8")
    assert "TEMPLATE" not in dict(commands(text)) and "# No TEMPLATE, because " in text and why in text


def test_files_in_parts_and_without_a_vocabulary_have_none(tokenizer, tmp_path):
    assert not (torchqat.export(prepared(), tmp_path / "bare", "gguf") / "Modelfile").exists()
    folder = torchqat.export(prepared(), tmp_path / "parts", "gguf", tokenizer, max_shard_size="50KB")
    assert len(list(folder.glob("*.gguf"))) > 1 and not (folder / "Modelfile").exists()
