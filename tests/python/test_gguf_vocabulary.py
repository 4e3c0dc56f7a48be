"""Tokenizers in GGUF files: what llama.cpp needs to split text as the model was trained on it."""

import json

import gguf
import pytest
import torchqat
from architectures import build
from conftest import TEXT
from sentencepiece_like import sentencepiece_like
from sentences import matches
from small_net import recipe_for
from test_gguf import WEIGHTS, prepared, reader_of, value_of
from torchqat.checkpoints.formats.llama_cpp.pre_tokenizers import PATTERNS, pre_tokenizer


def test_the_byte_level_tokenizer_is_carried_over(tokenizer, tmp_path):
    tokenizer.chat_template = "{{ messages }}"
    reader = reader_of(torchqat.export(prepared(), tmp_path / "out", "gguf", tokenizer))
    tokenizer.chat_template = None
    assert value_of(reader, "tokenizer.ggml.model") == "gpt2" and value_of(reader, "tokenizer.ggml.pre") == "gpt-2"
    tokens = value_of(reader, "tokenizer.ggml.tokens")
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = value_of(reader, "tokenizer.ggml.token_type")
    assert types[0] == gguf.TokenType.CONTROL and types[1] == gguf.TokenType.NORMAL
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert value_of(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
    assert value_of(reader, "tokenizer.ggml.eos_token_id") == 0
    assert value_of(reader, "tokenizer.ggml.add_bos_token") is False
    assert value_of(reader, "tokenizer.chat_template") == "{{ messages }}"


def test_rows_beyond_the_tokenizer_are_filled(tokenizer, tmp_path):
    model = torchqat.prepare(build("Llama", vocab_size=416, intermediate_size=128), recipe_for(WEIGHTS["Q4_0"]))
    reader = reader_of(torchqat.export(model, tmp_path / "out", "gguf", tokenizer))
    tokens = value_of(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == 416 and tokens[410] == "[PAD410]"
    assert value_of(reader, "tokenizer.ggml.token_type")[410] == gguf.TokenType.UNUSED


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer, tmp_path):
    model = torchqat.prepare(build("Llama", vocab_size=96, intermediate_size=128), recipe_for(WEIGHTS["Q4_0"]))
    with pytest.raises(torchqat.UserError, match=matches("export.tokenizer-too-large", rows=96, id=348)):
        torchqat.export(model, tmp_path / "out", "gguf", tokenizer)


def test_a_sentencepiece_tokenizer_has_scores(tmp_path):
    tokenizer = sentencepiece_like(400, TEXT)
    reader = reader_of(torchqat.export(prepared(), tmp_path / "out", "gguf", tokenizer))
    assert value_of(reader, "tokenizer.ggml.model") == "llama"
    types = value_of(reader, "tokenizer.ggml.token_type")
    tokens = value_of(reader, "tokenizer.ggml.tokens")
    assert types[tokens.index("<0x0A>")] == gguf.TokenType.BYTE
    assert types[0] == gguf.TokenType.UNKNOWN and types[1] == gguf.TokenType.CONTROL
    scores = value_of(reader, "tokenizer.ggml.scores")
    merges = ["".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    ranked = [scores[tokens.index(token)] for token in dict.fromkeys(merges)]
    assert ranked == sorted(ranked, reverse=True)
    assert value_of(reader, "tokenizer.ggml.add_space_prefix") is True


FALCON = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "ByteLevel", "use_regex": True},
    {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated"},
]


@pytest.mark.parametrize(
    ("parts", "whole", "name"),
    [
        ([{"type": "Split", "pattern": {"Regex": p}}, {"type": "ByteLevel", "use_regex": False}], whole, n)
        for (p, whole), n in PATTERNS.items()
    ]
    + [
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}], False, "smollm"),
        ([{"type": "ByteLevel"}], False, "gpt-2"),
        (FALCON, False, "falcon"),
    ],
)
def test_pre_tokenizers_are_known_by_their_pattern(parts, whole, name):
    described = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "model": {"type": "BPE", "ignore_merges": whole},
    }
    assert pre_tokenizer(described) == name


def test_named_chat_templates_are_all_there(tokenizer, tmp_path):
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    reader = reader_of(torchqat.export(prepared(), tmp_path / "out", "gguf", tokenizer))
    tokenizer.chat_template = None
    assert value_of(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert value_of(reader, "tokenizer.chat_template.tool_use") == "{{ tools }}"
    assert value_of(reader, "tokenizer.chat_templates") == ["tool_use"]


def test_a_pre_tokenizer_that_llama_cpp_does_not_have_is_refused():
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-tokenizer", found="Whitespace")):
        pre_tokenizer({"pre_tokenizer": {"type": "Whitespace"}})


def test_without_a_tokenizer_there_is_no_vocabulary(tmp_path):
    reader = reader_of(torchqat.export(prepared(), tmp_path / "out", "gguf"))
    assert value_of(reader, "tokenizer.ggml.model") == "no_vocab"
