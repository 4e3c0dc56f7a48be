"""The golden file of sentences and the tests that ask for them: each has the keys of the other."""

import ast
from itertools import groupby
from pathlib import Path
from string import Formatter

import pytest
from sentences import FILE, SENTENCES, entries, matches, said, sentence

HERE = Path(__file__).parent


def asked(path):
    """The keys that a file asks for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = {"matches": 0, "sentence": 0, "said": 1}.get(node.func.id)
            if place is not None:
                key = node.args[place]
                assert isinstance(key, ast.Constant), f"{path.name}:{node.lineno}: a key must be written out"
                yield key.value


def test_tests_and_the_file_have_the_same_keys():
    keys = {key for path in HERE.glob("test_*.py") if path != Path(__file__) for key in asked(path)}
    assert keys - SENTENCES.keys() == set(), "no sentence"
    assert SENTENCES.keys() - keys == set(), "no test asks"


def test_the_file_is_sorted_in_groups_and_each_key_is_there_once():
    text = FILE.read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        keys = [key for key, _ in entries(block)]
        assert keys == sorted(set(keys)) and len({key.split(".")[0] for key in keys}) <= 1
    groups = [group for group, _ in groupby(key.split(".")[0] for key, _ in entries(text))]
    assert groups == sorted(set(groups))


def test_other_values_and_other_words_are_not_said():
    text = sentence("runs.at-step", folder="runs/a", step=150, total=200)
    assert said(f"torchqat: {text}\n", "runs.at-step", folder="runs/a", step=150, total=200)
    assert said(text, "runs.at-step", step=150) and said(text.replace("runs/a", "runs\n/a"), "runs.at-step")
    assert not said(text, "runs.at-step", step=151)
    assert not said(text.replace("--restart deletes it", "--restart removes it"), "runs.at-step")
    assert not said(text, "runs.trained-state")
    assert not said(text.replace(".", "!"), "runs.at-step"), "a full stop is one"


@pytest.mark.parametrize("key", SENTENCES)
def test_every_value_and_word_counts(key):
    parts = list(Formatter().parse(SENTENCES[key]))
    values = {name: f"<{name}>" for _, name, _, _ in parts if name}
    text, words = sentence(key, **values), max((part[0] for part in parts), key=len)
    assert said(text, key, **values) and said(text, key)
    assert not any(said(text, key, **{name: "other"}) for name in values)
    assert not said(text.replace(words, words.swapcase()), key)


def test_braces_and_signs_of_expressions_are_themselves():
    assert sentence("data.line-without-label", file="a", line=2, text="[1]").startswith('a:2: a line must be {"text": ')
    assert said("[8] x", "load.other-shape") is False
    assert said(sentence("ops.block-sides", op="pack", block="[0, -1]"), "ops.block-sides", block="[0, -1]")


def test_keys_and_placeholders_that_are_none_are_said():
    with pytest.raises(KeyError, match="key must be one of sentences.txt, but is runs.none"):
        matches("runs.none")
    with pytest.raises(KeyError, match="runs.at-step has no placeholder page"):
        said("", "runs.at-step", page=1)
    with pytest.raises(KeyError, match="folder"):
        sentence("runs.at-step", step=1, total=2)
