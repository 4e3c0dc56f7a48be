"""vLLM loads our checkpoints and computes what training computed, to the precision of bfloat16."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import torchqat
from torchqat.data import Batches
from torchqat.losses import cross_entropy
from torchqat.scratch import new_model
from torchqat.training import TrainingLoop, scratch_optimizers

VLLM = os.environ.get("TORCHQAT_VLLM", "")
pytestmark = pytest.mark.skipif(
    not VLLM, reason="TORCHQAT_VLLM must name the Python of vLLM; make test-engines sets it"
)


class Settings:
    hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 256, 512, 2, 8, 4, 64


@pytest.fixture(scope="module")
def model():
    """A Llama that has learned to count, so that its predictions are not all alike."""
    model = new_model(Settings, 128, seed=0)
    section = torchqat._library.TrainSection()
    section.steps, section.learning_rate = 60, 2e-2

    def loss(batch):
        return cross_entropy(model(input_ids=batch, use_cache=False).logits, batch)

    tokens = torch.cat([torch.arange(128).roll(-i) for i in range(40)])
    return TrainingLoop(model, loss, Batches(tokens, 4, 64, 0), section, scratch_optimizers).run().bfloat16()


RECIPES = {
    "int4 g32": "weight: {dtype: int4, group_size: 32, grid: full, scale: learned}",
    "int4 g128": "weight: {dtype: int4, group_size: 128, scale: mse}",
    "int4 asymmetric": "weight: {dtype: int4, group_size: 32, symmetric: false}",
    "int8 weights and inputs": "weight: {dtype: int8}, input: {dtype: int8}",
    "gptq, fp8 cache": "weight: {dtype: int4, group_size: 32, grid: full}",
}
# What the recipe says beside its layers.
SECTIONS = {"gptq, fp8 cache": "initialize: {method: gptq}\nkv_cache: {dtype: fp8_e4m3}\n"}


@pytest.mark.parametrize("name", RECIPES)
def test_vllm_agrees_with_the_training_forward(name, model, tmp_path):
    import copy

    rule = f'version: 1\nlayers:\n  - {{match: "model.layers.*", {RECIPES[name]}}}\n'
    recipe = torchqat.parse_recipe(rule + SECTIONS.get(name, ""))
    prepared = torchqat.prepare(copy.deepcopy(model), recipe).eval()
    batches = [torch.arange(start, start + 256).view(4, 64) % 128 for start in range(0, 128, 16)]
    torchqat.calibrate(prepared, batches, lambda m, batch: m(input_ids=batch, use_cache=False))
    folder = torchqat.export(prepared, tmp_path / "checkpoint")
    prompts = [[(start + step) % 128 for step in range(24)] for start in (3, 40, 77, 100)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    command = [
        VLLM,
        Path(__file__).with_name("vllm_logprobs.py"),
        folder,
        tmp_path / "prompts.json",
        tmp_path / "out.json",
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    served = json.loads((tmp_path / "out.json").read_text())
    tokens = torch.tensor(prompts)
    with torch.no_grad():
        log = torch.log_softmax(prepared(input_ids=tokens, use_cache=False).logits.float(), -1)
    ours = log[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    theirs = torch.tensor([result["logprobs"] for result in served])
    # Same weights; bfloat16 activations are rounded in another order. 2^-8 per product, a few layers deep.
    assert (ours - theirs).abs().mean() < 0.03
    for prompt, result in zip(prompts, served, strict=True):
        assert result["greedy"] == [(prompt[-1] + 1 + step) % 128 for step in range(8)]
