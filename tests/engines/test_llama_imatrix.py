"""Importance matrices, by which llama.cpp itself quantizes."""

import subprocess
from pathlib import Path

import gguf
import pytest
import torch
import torchqat
from engine_models import needs
from gguf_models import build as build_architecture
from torchqat.checkpoints.formats.gguf import write_gguf
from torchqat.verification.engines import ENGINES

# Reads an importance matrix as llama-quantize does, and quantizes by it, in the engine's own Python.
QUANTIZE = """
import ctypes, sys
import numpy as np, llama_cpp as C
sys.path.insert(0, sys.argv[4])
import gguf
source, target, matrix = (path.encode() for path in sys.argv[1:4])
tensors = {t.name: t for t in gguf.GGUFReader(matrix.decode()).tensors}
names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
pairs = [(tensors[name + ".in_sum2"].data, tensors[name + ".counts"].data) for name in names]
means = [(sums / np.maximum(1, counts)).ravel().astype(np.float32) for sums, counts in pairs]
entries = (C.llama_model_imatrix_data * (len(names) + 1))()
for entry, name, mean in zip(entries, names, means):
    entry.name, entry.size = name.encode(), mean.size
    entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
parameters = C.llama_model_quantize_default_params()
parameters.ftype = C.LLAMA_FTYPE_MOSTLY_IQ2_XXS  # which llama.cpp refuses without a matrix for every tensor
if names:
    parameters.imatrix = entries
sys.exit(C.llama_model_quantize(source, target, ctypes.byref(parameters)))
"""


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
        package = str(Path(gguf.__file__).parents[1])
        files = [str(tmp_path / "float.gguf"), str(tmp_path / "small.gguf"), str(tmp_path / matrix)]
        command = [ENGINES["llama.cpp"].python("gguf"), "-c", QUANTIZE, *files, package]
        return subprocess.run(command, capture_output=True, text=True)

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
