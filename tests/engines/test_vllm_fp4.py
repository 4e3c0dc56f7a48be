"""NVFP4 and MXFP4 in vLLM on a GPU: its answers against those of transformers over the weights that it decompresses.

vLLM's CPU build has no linear layer for these types, so that nothing here runs without a GPU and a vLLM.
"""

import os
from dataclasses import replace

import pytest
import torch
import torchqat
from engine_models import prepared
from torchqat.verification.engines import TRANSFORMERS, VLLM, Question

# weight, format
FOLDERS = [("nvfp4", "compressed-tensors"), ("mxfp4", "compressed-tensors"), ("nvfp4", "modelopt")]
# What verify knows vLLM to load, and ModelOpt's folders.
ON_A_GPU = replace(VLLM, modules={**VLLM.modules, "modelopt": "vllm"})
GREEDY = 16
# Before a model is trained for it.
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM runs NVFP4 and MXFP4 on a GPU, but there is none"),
    pytest.mark.skipif(
        VLLM.variable() not in os.environ,
        reason=f"{VLLM.variable()} must name the Python of vllm",
    ),
]


@pytest.mark.parametrize("scale", ["minmax", "learned"])
@pytest.mark.parametrize(("weight", "format"), FOLDERS, ids=lambda word: word)
def test_vllm_agrees_with_what_transformers_decompresses(weight, format, scale, trained, prompts, tmp_path):
    model, tokenizer = trained("llama")
    model = prepared(model.bfloat16(), f"{{dtype: {weight}, scale: {scale}}}", "", "", prompts)
    folder = torchqat.export(model, tmp_path / "out", format, tokenizer)
    assert torchqat.verify(folder, model).ok  # bit for bit
    reference = folder
    if format == "modelopt":  # which transformers does not read: the same codes and scales in a format that it does
        reference = torchqat.export(model, tmp_path / "reference", "compressed-tensors", tokenizer)
    theirs = TRANSFORMERS.serve("compressed-tensors", asked(reference, prompts))
    assert_alike(theirs, ON_A_GPU.serve(format, asked(folder, prompts)))


def asked(folder, prompts):
    return Question(str(folder), prompts.tolist(), new_tokens=GREEDY, device="cuda:0")


def assert_alike(theirs, ours):
    """The KL that verify calls equal in half precision, and the same text for all prompts but one."""
    for wanted, found in zip(theirs.logprobs, ours.logprobs, strict=True):
        p, q = torch.as_tensor(wanted).double(), torch.as_tensor(found).double()
        listed = q.isfinite()
        kl = (p.exp() * (p - q)).where(listed, 0.0).sum(-1).mean()
        assert abs(kl.item()) <= VLLM.kl_bound, f"KL {kl:.5f}"
    same = sum(a == b for a, b in zip(theirs.greedy, ours.greedy, strict=True))
    assert same >= len(ours.greedy) - 1, f"{same} of {len(ours.greedy)} texts are the same"
