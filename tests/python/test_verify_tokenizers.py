"""``verify`` without an engine: with another tokenizer a checkpoint's weights are given other text."""

import json
from pathlib import Path

import gguf
import pytest
import torchqat
import transformers
from test_experts import recipe_of
from tokenizers import Tokenizer, models
from word_pieces import word_pieces

HALF = "{dtype: int4, group_size: 32, grid: signed, scale: mse, scale_dtype: float16}"


def swapped(folder):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["fox"], vocabulary["run"] = vocabulary["run"], vocabulary["fox"]
    file.write_text(json.dumps(state))


def ended(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sep_token": "[PAD]"}))


@pytest.mark.parametrize(
    "change, named",
    [
        (swapped, ["tokenizer.vocabulary", "tokenizer.texts"]),
        (ended, ["tokenizer.special_tokens"]),
        (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), ["tokenizer.chat_template"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer"]),
        (
            lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
            ["tokenizer"],
        ),
    ],
)
@pytest.mark.parametrize("format", ["compressed-tensors", "gptq"])
def test_the_tokenizer_of_the_folder_is_compared(format, change, named, tiny_llama, tmp_path):
    tokenizer = word_pieces()
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    assert torchqat.verify(folder, model, tokenizer=tokenizer, engine="reader").ok
    change(folder)
    checked = torchqat.verify(folder, model, tokenizer=tokenizer, engine="reader")
    assert not checked.ok and checked.settings == named
    assert torchqat.verify(folder, model, engine="reader").ok  # of whose tokenizer nothing was said


class Letters(transformers.PreTrainedTokenizer):
    """A tokenizer of the user's own class, which transformers writes and does not find again."""

    def __init__(self, **settings):
        super().__init__(unk_token="?", **settings)

    vocab_size = property(lambda self: len("?abc"))

    def get_vocab(self):
        return {letter: index for index, letter in enumerate("?abc")}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        file = Path(save_directory) / "vocab.txt"
        file.write_text("?abc")
        return (str(file),)


def test_of_a_tokenizer_of_the_users_own_class_the_files_are_compared(tiny_llama, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gptq", Letters())
    assert torchqat.verify(folder, model, tokenizer=Letters(), engine="reader").ok
    (folder / "vocab.txt").write_text("?acb")
    assert torchqat.verify(folder, model, tokenizer=Letters(), engine="reader").settings == ["tokenizer"]


def rewritten(file, key, place, value):
    """A GGUF file with another value: one of those of an array, or its own."""
    field = gguf.GGUFReader(file, "r+").get_field(f"tokenizer.{key}")
    field.parts[field.data[place]][0] = value


@pytest.mark.parametrize(
    "key, place, value, named",
    [
        ("ggml.tokens", 30, ord("Z"), "tokenizer.vocabulary"),
        ("ggml.merges", 5, ord("Z"), "tokenizer.merges"),
        ("ggml.eos_token_id", 0, 9, "tokenizer.special_tokens"),
        ("chat_template", 0, ord("Z"), "tokenizer.chat_template"),
    ],
)
def test_the_tokenizer_of_a_gguf_file_is_compared_without_an_engine(
    key, place, value, named, tiny_llama, tokenizer, tmp_path
):
    tokenizer.chat_template = "{{ messages }}"
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    assert torchqat.verify(folder, model, tokenizer=tokenizer).ok
    rewritten(folder / "model.gguf", key, place, value)
    checked = torchqat.verify(folder, model, tokenizer=tokenizer)
    assert not checked.ok and checked.settings == [named]


def test_a_gguf_file_without_a_tokenizer_is_told(tiny_llama, tokenizer, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gguf")
    assert torchqat.verify(folder, model, tokenizer=tokenizer).settings == ["tokenizer"]


def test_an_empty_chat_template_is_none(tiny_llama, tokenizer, tmp_path):
    tokenizer.chat_template = ""
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    assert torchqat.verify(folder, model, tokenizer=tokenizer).ok


def test_a_gguf_file_beside_a_tokenizer_of_another_kind_is_told(tiny_llama, tokenizer, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe_of(HALF))
    folder = torchqat.export(model, tmp_path / "out", "gguf", tokenizer)
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0))
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    assert torchqat.verify(folder, model, tokenizer=other).settings == ["tokenizer"]
