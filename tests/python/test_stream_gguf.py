"""GGUF files that are written block by block are those of the whole model."""

from pathlib import Path

import architectures
import pytest
import torchqat
from architectures import recipe, tokens
from sentences import matches
from streaming import GPTQ, WEIGHT_OF_GGUF, gguf_bytes, whole
from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files
from torchqat.runs.stream import quantize_folder

FAMILIES = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True},
    "Gemma3Text": {"query_pre_attn_scalar": 16},
    "Qwen3Moe": {"norm_topk_prob": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_is_byte_by_byte_that_of_the_whole_model(name, tokenizer, tmp_path):
    shape = {"vocab_size": len(tokenizer), **FAMILIES[name]}
    architectures.build(name.split(",")[0], **shape).save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    streamed = quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens(), tokenizer)
    prepared, _ = whole(tmp_path / "model", settings)
    expected = torchqat.export(prepared, tmp_path / "expected", "gguf", tokenizer)
    assert gguf_bytes(tmp_path / "out") == gguf_bytes(expected)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in expected.iterdir()}
    assert torchqat.verify(tmp_path / "out", prepared, engine="reader").ok
    assert streamed.bytes < sum(map(len, gguf_bytes(expected).values()))


def test_a_gguf_file_that_cannot_be_ended_is_not_there(llama_folder, tmp_path, monkeypatch):
    from torchqat.runs.stream_gguf import GgufStreamWriter

    def fails(writer, blocks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GgufStreamWriter, "add_rest", fails)
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    with pytest.raises(torchqat.UserError):
        quantize_folder(llama_folder, tmp_path / "out", settings, tokens())
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_does_not_know_is_refused_before_any_is_rounded(tmp_path, monkeypatch):
    architectures.build("StableLm").save_pretrained(tmp_path / "model")
    settings = recipe(GPTQ, WEIGHT_OF_GGUF)
    settings.exports = ["gguf"]
    monkeypatch.setattr("torchqat.runs.stream.initialize", lambda *_: pytest.fail("it began"))
    with pytest.raises(torchqat.UserError, match=matches("export.gguf-architecture", architecture="stablelm")):
        quantize_folder(tmp_path / "model", tmp_path / "out", settings, tokens())


def test_what_was_read_back_leaves_memory(tokenizer, tmp_path):
    shape = {"vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 512}
    torchqat.export(
        torchqat.prepare(architectures.build("Llama", **shape), recipe("{method: rtn}", WEIGHT_OF_GGUF)),
        tmp_path / "out",
        "gguf",
        tokenizer,
    )
    read = GgufFile(gguf_files(tmp_path / "out"))
    before = [tensor.data.copy() for _, tensor in read.tensors]
    assert mapped_bytes(read.files[0]) > 300_000
    read.forget()
    assert mapped_bytes(read.files[0]) == 0
    assert all((tensor.data == then).all() for (_, tensor), then in zip(read.tensors, before, strict=True))


def mapped_bytes(file):
    """What of a mapped file is in the memory of this process."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counts = line.endswith(str(file))
        elif counts and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found
