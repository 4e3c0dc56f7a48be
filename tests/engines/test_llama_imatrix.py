"""Importance matrices, by which llama.cpp itself quantizes."""

import gguf
import pytest
import torch
import torchqat
from engine_models import needs
from gguf_models import build as build_architecture
from llama_quantize import run_quantizer
from torchqat.checkpoints.formats.gguf import write_gguf

IQ2_XXS = 19  # of llama.h, which llama.cpp refuses without a matrix for every tensor


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_llama_cpp_quantizes_by_an_importance_matrix(name, tmp_path):
    """IQ2_XXS needs one for each tensor: without ours, or with a name of it wrong, llama.cpp refuses."""
    needs("llama.cpp")
    wide = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 256,
        "shared_expert_intermediate_size": 256,
    }
    model = build_architecture(name, **wide)
    write_gguf(model, [], None, tmp_path / "float.gguf")
    tokens = [torch.randint(5, 320, (4, 64), generator=torch.Generator().manual_seed(3))]
    assert torchqat.imatrix(model, tokens, tmp_path / "imatrix.gguf")

    def quantized(matrix):
        return run_quantizer(tmp_path / "float.gguf", tmp_path / "small.gguf", IQ2_XXS, tmp_path / matrix)

    done = quantized("imatrix.gguf")
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    part = "ffn_up_exps" if name == "qwen2_moe" else "ffn_up"
    assert kinds[f"blk.1.{part}.weight"] == "IQ2_XXS"
    wrong = (
        (tmp_path / "imatrix.gguf")
        .read_bytes()
        .replace(f"blk.1.{part}.weight".encode(), f"blk.9.{part}.weight".encode())
    )
    (tmp_path / "wrong.gguf").write_bytes(wrong)
    assert quantized("wrong.gguf").returncode != 0
