"""Corpora, batches and windows."""

import json

import pytest
import torch
from sentences import matches, sentence
from torchqat import UserError
from torchqat.data.batches import Batches, shortfall
from torchqat.data.corpus import load_corpus
from torchqat.data.sources import STDLIB
from torchqat.data.tokenized import tokenize
from torchqat.data.windows import windows


def test_the_standard_library_is_a_corpus():
    corpus = load_corpus(STDLIB)
    assert len(corpus.train) > 100 and len(corpus.held_out) > 10
    assert any("import" in text for text in corpus.held_out)
    assert not set(corpus.train) & set(corpus.held_out)


def test_every_tenth_file_is_held_out(data_folder):
    corpus = load_corpus(str(data_folder))
    assert (len(corpus.train), len(corpus.held_out)) == (27, 3)


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("0123456789" * 10)
    corpus = load_corpus(str(file))
    assert corpus.train[0] + corpus.held_out[0] == "0123456789" * 10
    assert len(corpus.held_out[0]) == 10


def test_held_out_data_may_be_given(data_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else")
    corpus = load_corpus(str(data_folder), str(other))
    assert len(corpus.train) == 30 and corpus.held_out == ["something else"]


def test_jsonl(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(20)) + "\n\n")
    corpus = load_corpus(str(file))
    assert len(corpus.train) + len(corpus.held_out) == 20


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=matches("data.nowhere", source="nowhere")):
        load_corpus("nowhere")
    with pytest.raises(UserError, match=matches("data.no-text", source=tmp_path)):
        load_corpus(str(tmp_path))
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(UserError, match=matches("data.no-text", source=tmp_path / "blank.txt")):
        load_corpus(str(tmp_path / "blank.txt"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(
        UserError, match=matches("data.line-without-text", file=bad, line=2, text='{"body": "no text"}')
    ):
        load_corpus(str(bad))


def test_batches_are_a_function_of_the_step():
    tokens = torch.arange(1000)
    batches = Batches(tokens, 4, 16, seed=3)
    assert batches[7].shape == (4, 16)
    assert torch.equal(batches[7], Batches(tokens, 4, 16, seed=3)[7])
    assert not torch.equal(batches[7], batches[8])
    assert not torch.equal(batches[7], Batches(tokens, 4, 16, seed=4)[7])
    assert (batches[7].diff(dim=1) == 1).all()


def test_too_little_text_for_a_sequence():
    with pytest.raises(UserError, match=matches("data.too-few-tokens", length=16, found=10)):
        Batches(torch.arange(10), 1, 16, 0)
    with pytest.raises(UserError, match=matches("data.too-little-held-out", least=2, found=1)):
        windows(torch.arange(1), 4, 8)


def test_too_little_calibration_data_is_said():
    few = windows(torch.arange(25), 64, 10)
    asked = {"samples": 64, "sequence_length": 10}
    assert shortfall(few, 64, 10) == sentence("data.too-few-sequences", count=2, length=10, **asked)
    short = windows(torch.arange(7), 1, 10)
    asked = {"samples": 1, "sequence_length": 10}
    assert shortfall(short, 1, 10) == sentence("data.too-few-sequences", count=1, length=7, **asked)
    assert shortfall(few, 2, 10) == ""


def test_windows_are_spread_evenly():
    batches = windows(torch.arange(100), samples=5, sequence_length=10, batch_size=2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    rows = torch.cat(batches)
    assert rows[0, 0] == 0 and rows[-1, -1] >= 97
    assert len(torch.cat(windows(torch.arange(25), 64, 10))) == 2


def test_documents_end_with_the_end_of_text(tokenizer):
    tokens = tokenize(tokenizer, ["def f", "return"])
    assert (tokens == tokenizer.eos_token_id).sum() == 2
