"""What training of quantized experts holds beyond plain training: the rounded experts of one layer at a time."""

import copy

import pytest
import torch
import torchqat
import transformers
from torch.profiler import ProfilerActivity, profile
from torchqat import ops

SIZES = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
MODELS = {
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=128, num_experts=4, num_experts_per_tok=2)
    ),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(  # transposed
        transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    ),
}
TOKENS = torch.arange(64).view(2, 32) * 7 % 128


def _prepared(model, scale="minmax"):
    rule = f"{{match: blocks, weight: {{dtype: int4, group_size: 32, grid: full, scale: {scale}}}}}"
    return torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(f"version: 1\nlayers: [{rule}]\n"), "rtn")


def _loss(model):
    return model(TOKENS, use_cache=False).logits.square().mean()


def _held_for_the_backward(model) -> int:
    """Bytes that torch's allocator has given for a forward and not got back while its loss is there."""
    _loss(model).backward()  # what is made once
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss = _loss(model)
    held = sum(event.self_cpu_memory_usage for event in found.key_averages())
    loss.backward()
    return held


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_held_from_a_forward_to_its_backward(name, implementation, scale):
    """Neither rounded weights, nor scales that were found, nor a copy of transposed experts in the order of rounding."""
    torch.manual_seed(0)
    model = MODELS[name]()
    model.set_experts_implementation(implementation)
    plain, quantized = _held_for_the_backward(model), _held_for_the_backward(_prepared(model, scale))
    smallest = min(p.numel() for p in model.parameters() if p.dim() == 3) * 4 // 32
    assert quantized - plain < smallest  # the scales of the smallest tensor of experts


def test_buffers_of_a_forward_are_one_of_the_largest_in_the_backward():
    model = _prepared(MODELS["qwen3_moe"]())
    largest = max(p.numel() for p in model.parameters() if p.dim() == 3) * 4
    ops.release_kept_memory()
    before = ops.kept_bytes()
    loss = _loss(model)
    assert ops.most_kept_bytes() - before > largest  # two at once
    assert ops.kept_bytes() - before == largest
    loss.backward()


def test_transposed_experts_that_change_before_the_backward_are_an_error():
    model = _prepared(MODELS["gpt_oss"]())
    loss = _loss(model)
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed between a forward and its backward"):
        loss.backward()
