"""``live_weights`` into vLLM while it runs: it then computes what one that starts on an export does, bit for bit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchqat
from engine_models import GROUPS, HALF, OFFSET, needs
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
SHAPE = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "initializer_range": 0.1,
}  # fmt: skip
PROMPTS = [[1, 2, 3], [4, 5, 6, 7]]
FP8_CACHE = "kv_cache: {dtype: fp8_e4m3}\n"

CASES = [
    # model, format, weight, other sections
    ("llama", "compressed-tensors", GROUPS, FP8_CACHE),
    ("tied qwen2", "compressed-tensors", "{dtype: int4, group_size: 32, symmetric: false}", ""),
    ("llama", "gptq", HALF, ""),
    ("tied qwen2", "awq", OFFSET, ""),
]


@pytest.fixture
def serving(monkeypatch):
    """Gives vLLM on a folder, as the example starts it; it ends with the test."""
    needs("vllm")
    monkeypatch.syspath_prepend(EXAMPLES)
    from grpo_rollouts import Rollouts

    started = []

    def start(folder):
        started.append(Rollouts(folder))
        return started[-1]

    yield start
    for engine in started:
        engine.stop()


def tiny(model, format):
    torch.manual_seed(0)
    if model == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SHAPE))
    else:
        made = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    return made.to(torch.bfloat16 if format == "compressed-tensors" else torch.float16)


def calibrate(model):
    torchqat.calibrate(model, [torch.randint(0, 64, (4, 32))], lambda m, batch: m(input_ids=batch, use_cache=False))


@torch.no_grad()
def changed(model):
    """Every parameter moved, biases and learned scales among them, and caches seen again."""
    for parameter in model.parameters():
        parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.02 * torch.randn_like(parameter))
    for layer in model.model.layers:
        layer.self_attn.v_proj.weight.mul_(2)
    calibrate(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[:2]))
def test_an_engine_that_reloads_is_one_that_starts_anew(case, serving, tmp_path):
    name, format, weight, other = case
    recipe = torchqat.parse_recipe(f"version: 1\nlayers:\n  - {{match: blocks, weight: {weight}}}\n{other}")
    model = torchqat.prepare(tiny(name, format), recipe)
    calibrate(model)
    engine = serving(torchqat.export(model, tmp_path / "first", format))
    began_with = engine.write(PROMPTS, seed=1)
    for _ in range(2):
        changed(model)
        engine.reload(torchqat.live_weights(model, format))
    found = engine.write(PROMPTS, seed=1)
    anew = serving(torchqat.export(model, tmp_path / "second", format)).write(PROMPTS, seed=1)
    assert torch.equal(found[0], anew[0]) and torch.equal(found[1], anew[1]) and found[1].isfinite().all()
    assert not torch.equal(found[1], began_with[1])


def test_a_model_learns_from_what_vllm_writes_with_its_weights(tmp_path):
    needs("vllm")
    command = [sys.executable, EXAMPLES / "grpo_rollouts.py", "--steps", "20", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    row = r"reward (\S+)  difference (\S+)  bound (\S+)  stale (\S+)"
    steps = [[float(figure) for figure in found] for found in re.findall(row, done.stdout)]
    assert len(steps) == 20 and steps[0][0] < 0.1 and steps[-1][0] > 0.5
    for reward, difference, bound, stale in steps:
        assert difference <= bound < stale, f"reward {reward}"
