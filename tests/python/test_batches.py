"""Batches of any kind: cut, told apart, padded, drawn by seed and step."""

import pytest
import torch
from torchqat.data.batch import chunks, digest, rows_of, size_of
from torchqat.data.examples import ExampleBatches, Examples, paragraphs


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_every_kind_of_batch_is_cut_as_torch_cuts(count):
    rows = torch.arange(10)
    expected = [c.tolist() for c in rows.chunk(count)]
    assert [c.tolist() for c in chunks(rows, count)] == expected
    assert [c[0].tolist() for c in chunks((rows, rows * 2), count)] == expected
    assert [c["b"].tolist() for c in chunks({"a": rows, "b": rows}, count)] == expected


def test_a_digest_tells_batches_apart():
    batch = {"input_ids": torch.arange(6).view(2, 3), "labels": torch.tensor([0, 1])}
    assert digest(batch) == digest(dict(reversed(batch.items())))
    assert digest(batch) != digest({**batch, "labels": torch.tensor([0, 2])})
    assert size_of(rows_of(batch, 0, 1)) == 1


def test_token_ids_are_padded_and_masked():
    examples = Examples([torch.tensor([5, 6, 7]), torch.tensor([8])], torch.tensor([1, 0]), padding=9)
    batch = examples.batch(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]] and batch["labels"].tolist() == [0, 1]
    assert [b["input_ids"].tolist() for b in examples.unpadded(torch.arange(2), 8)] == [[[8]], [[5, 6, 7]]]


def test_training_batches_are_a_function_of_seed_and_step():
    examples = Examples(torch.arange(40.0).view(20, 2), torch.arange(20))
    first, again, other = (ExampleBatches(examples, 6, seed) for seed in (0, 0, 1))
    assert torch.equal(first[3][1], again[3][1]) and not torch.equal(first[3][1], other[3][1])
    assert not torch.equal(first[3][1], first[4][1]) and len(set(first[3][1].tolist())) == 6


def test_paragraphs_are_taken_once():
    assert paragraphs(["one\n\ntwo\n", "two\n \nthree"]) == ["one", "two", "three"]
