"""What a training takes by count is what its tensors take, on one process and on two, before and beside QAT."""

import json

import pytest
import torch
import torchqat
from launcher import said_by
from torch import nn
from torchqat.training.memory import training_memory
from transformers import LlamaConfig, LlamaForCausalLM

WORKER = """
import json, sys, torch, torchqat
from torch import nn
from torchqat.training.spread import shard
from torchqat.training.processes import count, processes, rank
from torchqat.layers.sharded import local
from torchqat.training.memory import training_memory
from transformers import LlamaConfig, LlamaForCausalLM

def size(tensors):
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)

with processes():
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=401)
    model = torchqat.prepare(LlamaForCausalLM(config), torchqat.load_recipe(sys.argv[1]))
    counted = training_memory(model, count())
    if count() > 1:
        shard(model, torchqat.QuantLinear)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 8, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    if rank() == 0:
        parameters = list(model.parameters())
        buffers = [b for name, b in model.named_buffers() if name.rpartition(".")[2].startswith(("weight_", "lattice_"))]
        moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
        found = {"parameters": size(parameters) + size(buffers), "gradients": size([p.grad for p in parameters]),
                 "optimizer": size(moments)}
        said = {"parameters": counted.weights + counted.scales, "gradients": counted.gradients,
                "optimizer": counted.optimizer}
        print(json.dumps([found, said]))
"""


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("scale", ["learned", "mse"])
def test_bytes_are_those_of_the_tensors(processes, scale, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nlayers: [{{match: 'model.layers.*', weight: {{dtype: int4, group_size: 32, scale: {scale}}}}}]\n"
    )
    found, counted = json.loads(said_by(WORKER, tmp_path, processes, recipe))
    assert found == counted


def test_a_model_without_memory_of_its_own_is_counted(tmp_path):
    """On the meta device: LLaMA-7B has 6.7 billion parameters, of which AdamW in float32 takes 16 bytes each."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=32000)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    plain = training_memory(model)
    parameters = sum(p.numel() for p in model.parameters())
    assert plain.total == 16 * parameters and 6.7e9 < parameters < 6.8e9
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 128, scale: learned}}]\n"
    )
    torchqat.prepare(model, torchqat.load_recipe(str(recipe)))
    quantized = training_memory(model)
    inside = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torchqat.QuantLinear))
    assert quantized.total - plain.total == 16 * inside // 128 + 4 * 4096 * 11008
    assert training_memory(model, 8).weights == quantized.weights // 8


def test_a_teacher_takes_its_dtype(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    assert training_memory(model, teacher=torch.bfloat16).teacher == 64
