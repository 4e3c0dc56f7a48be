"""What is held of a mixture of experts that is quantized from a folder into a folder does not grow with its depth."""

import pytest
import torch
import transformers
from architectures import recipe, tokens
from torchqat.runs.stream import quantize_folder
from torchqat.runs.stream_writer import StreamWriter

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 100, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def _held(depth, place, monkeypatch):
    """The numbers of parameters that have memory while each block is written, and their names."""
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**SIZES, num_hidden_layers=depth)
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(place / "model")
    found, add_block = [], StreamWriter.add_block

    def count(writer, block):
        found.append({name: p.numel() for name, p in writer.model.named_parameters() if not p.is_meta})
        add_block(writer, block)

    with monkeypatch.context() as patched:
        patched.setattr(StreamWriter, "add_block", count)
        settings = recipe("{method: gptq}", "{dtype: int4, group_size: 32, grid: full, scale: mse}")
        quantize_folder(place / "model", place / "out", settings, tokens(count=2))
    return found


@pytest.mark.parametrize("depth", [2, 8])
def test_one_block_is_held_at_a_time(depth, tmp_path, monkeypatch):
    held = _held(depth, tmp_path, monkeypatch)
    assert len(held) == depth
    for index, numbers in enumerate(held):
        assert all(name.startswith(f"model.layers.{index}.") for name in numbers)
    assert {sum(numbers.values()) for numbers in held} == {sum(held[0].values())}
    experts = 3 * 4 * 64 * 32
    assert sum(held[0].values()) >= experts
