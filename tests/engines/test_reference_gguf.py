"""``verify --reference`` of what llama.cpp's own quantizer writes."""

import os

import pytest
from llama_quantize import llama_quantize
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.runs.foreign import compare
from torchqat.runs.scratch import new_model, train_tokenizer

PYTHON = os.environ.get("TORCHQAT_LLAMA_CPP", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="llama.cpp is not installed; make test-engines installs it")

FILE_TYPES = {"Q4_K_M": 15, "Q8_0": 7, "Q2_K": 10}  # llama.h
TEXT = [f"def function_{i}(argument):\n    return argument + {i}\n\n\n" * 12 for i in range(30)]


class Wide:
    """As wide as a block of K-quants."""

    hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 256, 512, 2, 4, 2, 32


@pytest.mark.parametrize(("kind", "most"), (("Q4_K_M", 0.1), ("Q8_0", 0.01), ("Q2_K", 0.4)))
def test_what_llama_quantize_writes(kind, most, tmp_path):
    """Every matrix is quantized, as far from the float model's as that type may be, and the norms are the float model's."""
    model, tokenizer = new_model(Wide, 400, seed=0).eval(), train_tokenizer(TEXT, 400)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(model, [], None, tmp_path / "float.gguf", tokenizer)
    place, data = tmp_path / f"{kind}.gguf", tmp_path / "data.txt"
    llama_quantize(tmp_path / "float.gguf", place, FILE_TYPES[kind])
    data.write_text("".join(TEXT[:2]))
    found = compare(place, str(tmp_path / "model"), str(data), device="cpu")
    assert found.weights.ok and not found.weights.changed and len(found.weights.kept) == 5
    assert len(found.weights.layers) == 15 and all(1e-4 < layer.relative < most for layer in found.weights.layers)
    assert 0 < found.figures.kl < 0.1
