"""Examples that are measured on and trained on, too, of models that are no language models."""

import json

import torch
import torchqat
from sentences import sentence
from seq2seq_models import write_lines, write_speech
from torchqat.data.examples import Examples
from torchqat.data.seen import seen_examples
from torchqat.data.written import sounds_with_texts, texts_with_targets
from torchqat.kinds import find_kind

RECIPE = """version: 1
layers: [{match: "*encoder.layer.*", weight: {dtype: int4, group_size: 32}}]
model: {kind: %s, path: %s}
data: {train: %s, evaluation: {samples: 16, sequence_length: %d%s}}
train: {steps: 4, batch_size: 4, sequence_length: 32}
"""


def lines(places, label=True):
    found = [{"text": f"def function_{i}(argument): return {i}", **({"label": i % 3} if label else {})} for i in places]
    return "".join(json.dumps(line) + "\n" for line in found)


def notes(kind, folder, train, evaluation="", length=32):
    path = f", path: {evaluation}" if evaluation else ""
    recipe = torchqat.parse_recipe(RECIPE % (kind, folder, train, length, path), "recipe.yaml")
    kind = find_kind(kind)
    return list(kind.load_data(recipe, kind.load_tokenizer(str(folder))).notes)


def test_labelled_texts_of_another_file(tmp_path, classifier_folder):
    train, other, new = tmp_path / "train.jsonl", tmp_path / "other.jsonl", tmp_path / "new.jsonl"
    train.write_text(lines(range(60)))
    other.write_text(lines(range(50, 80)))
    new.write_text(lines(range(100, 140)))
    assert notes("classifier", classifier_folder, train, new) == []
    wanted = [sentence("data.seen-examples", count=10, all=30, source=other, other=train)]
    assert notes("classifier", classifier_folder, train, other) == wanted
    # Cut off before the end, but after what tells them apart.
    assert notes("classifier", classifier_folder, train, other, length=14) == wanted


def test_copies_in_one_file(tmp_path, classifier_folder):
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    once.write_text(lines(range(60)))
    twice.write_text(lines(range(40)) + lines(range(40)))
    assert notes("classifier", classifier_folder, once) == []
    # Each tenth is held out, from 5 on: 5, 15, 25 and 35 of both copies, so that those are in no other place.
    assert notes("classifier", classifier_folder, twice) == []
    twice.write_text(lines(range(40)) + lines([5, *range(50, 80)]))
    wanted = sentence("data.seen-examples", count=1, all=7, source=twice, other=twice)
    assert notes("classifier", classifier_folder, twice) == [wanted]


def test_sentences(tmp_path, encoder_folder):
    train, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    train.write_text(lines(range(60), label=False))
    other.write_text(lines(range(58, 80), label=False))
    assert notes("sentence_encoder", encoder_folder, train) == []
    wanted = sentence("data.seen-examples", count=2, all=22, source=other, other=train)
    assert notes("sentence_encoder", encoder_folder, train, other) == [wanted]


def test_pairs_are_the_same_where_both_are(tmp_path, tokenizer):
    def written(name, *pairs):
        path = write_lines(tmp_path / name, [{"source": one, "target": other} for one, other in pairs])
        return texts_with_targets(path, tokenizer, 16, None, torch.clone)

    train = written("a.jsonl", ("def f", "return 1"), ("def g", "return 2"), ("def h", "return 3"))
    other = written("b.jsonl", ("def f", "return 1"), ("def g", "return 4"), ("def i", "return 3"))
    assert seen_examples(train, other, ("a", "b")) == [
        sentence("data.seen-examples", count=1, all=3, source="b", other="a")
    ]


def test_sounds_are_the_same_where_their_files_are(tmp_path, tokenizer):
    found = sounds_with_texts(write_speech(tmp_path), tokenizer, _Hears(), 32, None, torch.clone)
    train, other = found.part(torch.arange(20)), found.part(torch.arange(17, 30))
    assert seen_examples(train, other, ("a", "b")) == [
        sentence("data.seen-examples", count=3, all=13, source="b", other="a")
    ]


class _Hears:
    sampling_rate = 16000


def test_vectors():
    inputs = torch.randn(20, 3, 4)
    train, other = Examples(inputs[:12], torch.zeros(12)), Examples(inputs[10:], torch.ones(10))
    assert seen_examples(train, other, ("a", "b")) == [
        sentence("data.seen-examples", count=2, all=10, source="b", other="a")
    ]
    assert seen_examples(train, other.part(torch.arange(2, 10)), ("a", "b")) == []


def test_pictures_are_not_held_twice():
    pictures = Examples(torch.randn(2, 3, 64, 64))
    assert {len(identity) for identity in pictures.identities()} == {32}
