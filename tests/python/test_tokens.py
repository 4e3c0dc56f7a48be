"""Tokens on disk, windows of them, and what texts begin with."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chats import TEMPLATE, messages, write_lines
from sentences import matches
from torchqat import UserError
from torchqat.data.batches import Batches
from torchqat.data.sources import Source
from torchqat.data.token_file import Tokens, TokenWriter, read_tokens
from torchqat.data.tokenized import tokenize, tokenized_source
from torchqat.data.tokenizers import beginning, content_of_tokenizer
from torchqat.data.windows import all_windows, held_out_windows, windows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def begun(tokenizer):
    """A tokenizer that puts a token before every text, as Llama's and Gemma's do."""
    from tokenizers.processors import TemplateProcessing

    found = copy.deepcopy(tokenizer)
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return found


def stream(tokens: Tokens) -> torch.Tensor:
    return torch.from_numpy(tokens.ids.astype("int64"))


def test_a_source_on_disk_is_the_stream_in_memory(tokenizer, corpus, data_folder):
    found = tokenized_source(tokenizer, Source(str(data_folder)))
    kept = [text for place, text in enumerate([*corpus.train, *corpus.held_out]) if place % 10 != 5]
    assert torch.equal(stream(found.train), tokenize(tokenizer, kept))
    assert found.train.rows == 27 and found.held_out.rows == 3 and not found.conversations
    assert found.train.ids.dtype == "uint16" and found.train.ids.base is not None


def test_it_is_tokenized_once_and_anew_where_anything_changed(tokenizer, begun, tmp_path, cache):
    path, said = tmp_path / "rows.jsonl", []
    write_lines(path, [{"text": f"text {i}"} for i in range(20)])

    def load(tokenizer=tokenizer, **options):
        return tokenized_source(tokenizer, Source(str(path)), say=said.append, **options)

    first, again = load(), load()
    assert len(said) == 1 and first.train.digest == again.train.digest
    assert load(begun).train.digest == first.train.digest and len(said) == 2
    load(whole=True)
    write_lines(path, [{"text": f"text {i}!"} for i in range(20)])
    assert load().train.digest != first.train.digest and len(said) == 4
    assert sorted(one.suffix for one in (cache / "tokens").iterdir()) == [""] * 4 + [".lock"] * 4


def test_a_source_that_fails_leaves_nothing(tokenizer, tmp_path, cache):
    path = write_lines(tmp_path / "rows.jsonl", [{"messages": messages(i)} for i in range(20)])
    with pytest.raises(UserError, match=matches("data.no-template")):
        tokenized_source(tokenizer, Source(path))
    assert [one.suffix for one in (cache / "tokens").iterdir()] == [".lock"]


def test_truncation_of_an_earlier_call_is_no_other_tokenizer(tokenizer):
    found = copy.deepcopy(tokenizer)
    before = content_of_tokenizer(found)
    found("text " * 20, truncation=True, max_length=3)
    assert content_of_tokenizer(found) == before
    found.chat_template = TEMPLATE
    assert content_of_tokenizer(found) != before


def test_long_texts_have_the_tokens_of_the_whole(tokenizer, tmp_path):
    text = "".join(f"def function_{i}(argument):\n    return {i}\n\n" for i in range(30_000))
    (tmp_path / "long.py").write_text(text)
    found = tokenized_source(tokenizer, Source(str(tmp_path / "long.py")))
    assert len(text) > 30 * (1 << 15)
    both = torch.cat([stream(found.train), stream(found.held_out)])
    assert tokenizer.decode(both).replace(tokenizer.eos_token, "") == text
    whole = tokenizer(text, verbose=False)["input_ids"]
    cut = len(found.train) - 1
    assert both[: cut - 8].tolist() == whole[: cut - 8], "up to where the held-out part begins"


PROGRAM = """
import json, resource, sys
from transformers import AutoTokenizer
from torchqat.data.batches import Batches
from torchqat.data.sources import Source
from torchqat.data.tokenized import tokenized_source
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
def load(path):
    found = tokenized_source(tokenizer, Source(path))
    for step in range(20):
        Batches(found.train, 4, 64, 0)[step]
    return len(found.train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([load(path) for path in sys.argv[2:]]))
"""


def test_memory_does_not_grow_with_the_text(model_folder, tmp_path):
    """A list of ints would take 36 bytes a token: here 65 MB more."""
    for name, count in (("short", 60_000), ("long", 360_000)):
        (tmp_path / f"{name}.txt").write_text("".join(f"argument {i} returns {i % 7}\n" for i in range(count)))
    paths = [str(tmp_path / f"{name}.txt") for name in ("short", "long")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_folder), *paths], capture_output=True, text=True, check=True
    )
    (few, before), (many, after) = json.loads(done.stdout)
    assert many > 1_500_000 and many > 5 * few
    assert after - before < 0.5 * 36 * (many - few) / 1e6


def anonymous():
    """Bytes of this program that are no pages of files."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon")]
    return 1024 * int(line.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells anonymous memory apart")
def test_a_billion_tokens_take_the_memory_of_what_is_looked_at(tmp_path):
    """In a file with holes, which takes no room on disk either; read into memory they would take 3 GB."""
    billion = 10**9
    with TokenWriter(tmp_path, 400, masks=True) as writer:
        writer.add([7] * 100, [True] * 100)
    for name, size in (("ids.bin", 2), ("counted.bin", 1)):
        os.truncate(tmp_path / name, size * billion)
    np.save(tmp_path / "starts.npy", np.array([0, billion]))
    before = anonymous()
    tokens = read_tokens(tmp_path)
    drawn = [Batches(tokens, 4, 64, 0)[step] for step in range(20)]
    drawn += [*windows(tokens, 8, 64), *held_out_windows(tokens, 8, 64)[1]]  # and kept
    ids, counted = tokens.row(0, 200)
    assert len(tokens) == billion and ids.sum() == 700 and counted.sum() == 100
    assert anonymous() - before < 16e6


def test_windows_begin_as_texts_do(tokenizer, begun, data_folder):
    assert beginning(tokenizer) is None and beginning(begun) == begun.bos_token_id
    tokens, first = Tokens.of(torch.arange(1, 1001)), beginning(begun)
    for batch in (
        Batches(tokens, 4, 16, 0, first)[3],
        *windows(tokens, 8, 16, first=first),
        *held_out_windows(tokens, 8, 16, first)[1],
        *all_windows(tokens, 0, 16, first),
    ):
        assert (batch[:, 0] == first).all() and batch.shape[1] == 16 or len(batch) == 1
        assert (batch[:, 1:].diff(dim=1) == 1).all()
    every = torch.cat([Batches(tokens, 64, 990, 0, first)[step][:, -1] for step in range(8)])
    assert every.max() == 1000 and every.min() == 989


def test_the_whole_of_a_test_set_is_measured():
    tokens = Tokens.of(torch.arange(1003))
    found = all_windows(tokens, 0, 100)
    assert torch.equal(torch.cat([batch.flatten() for batch in found]), torch.arange(1003))
    assert torch.equal(
        torch.cat([b[:, 1:].flatten() for b in all_windows(tokens, 0, 100, first=7)]), torch.arange(1003)
    )
    assert torch.equal(all_windows(Tokens.of(torch.arange(101)), 0, 100)[-1], torch.arange(100)[None]), (
        "one predicts none"
    )
    assert sum(map(len, all_windows(tokens, 4, 100))) == 4
    assert all(batch.numel() <= 2048 for batch in all_windows(Tokens.of(torch.arange(9000)), 0, 1000))


@pytest.mark.parametrize("count", [4, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100, 333, 1000])
@pytest.mark.parametrize("samples", [1, 2, 5, 64])
def test_validation_never_overlaps_what_is_reported(count, samples):
    reported, chosen = held_out_windows(Tokens.of(torch.arange(count)), samples, 16)
    rows = [set(row.tolist()) for batches in (reported, chosen) for batch in batches for row in batch]
    assert sum(map(len, rows)) == len(set().union(*rows)), "no token is in two windows"
    assert reported and chosen and sum(map(len, reported)) <= samples and sum(map(len, chosen)) <= samples
    if count >= 64 * samples:
        assert torch.equal(torch.cat(reported), torch.cat(windows(torch.arange(count), samples, 16)))


def test_too_little_text_to_report_and_to_choose_by():
    with pytest.raises(UserError, match=matches("data.too-little-held-out", least=4, found=3)):
        held_out_windows(Tokens.of(torch.arange(3)), 4, 8)
    with pytest.raises(UserError, match=matches("data.too-little-held-out", least=2, found=1)):
        all_windows(Tokens.of(torch.arange(1)), 0, 8)
