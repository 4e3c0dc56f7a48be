"""Models with a state, or with attention that is linear in the text: the recipe of any other model takes them."""

import pytest
import torch
import torchqat
import transformers
from model_zoo.models import Entry, build
from sentences import said
from torch import nn
from torchqat.kinds import find_kind
from torchqat.model.prepare import make_plan

RECIPE = """version: 1
layers: [{match: blocks, weight: {dtype: int4, group_size: 16}}]
initialize: {method: gptq}
"""
TYPES = ("mamba2", "falcon_h1", "qwen3_next", "bamba", "lfm2_moe", "qwen3_5_text")


def forward(model, batch):
    return model(input_ids=batch, use_cache=False)


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_of_hybrids_are_quantized_without_their_depthwise_convolutions(kind, tmp_path):
    entry = Entry(kind)
    build(entry).save_pretrained(tmp_path / "model")
    model = find_kind("causal_lm").load(str(tmp_path / "model"), "float32")
    recipe = torchqat.parse_recipe(RECIPE, "recipe")
    plan = make_plan(model, recipe)
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv1d)}
    left = {weight.name: weight.why for weight in plan.left}
    assert convolutions and all(said(left[name], "plan.depthwise") for name in convolutions)
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert linear - {layer.name for layer in plan.layers} <= {name for name in left if left[name]}
    batches = [torch.randint(40, 256, (2, 32)) for _ in range(4)]
    prepared = torchqat.prepare(model, recipe)
    torchqat.calibrate(prepared, batches, forward)
    folder = torchqat.export(prepared, tmp_path / "out")
    checked = torchqat.verify(folder, prepared, batches[0][:, :16], engine="transformers")
    assert checked.ok and checked.layers == len(plan.layers), str(checked)


def test_a_depthwise_convolution_is_quantized_where_a_rule_names_it():
    model = build(Entry("mamba2"))
    text = RECIPE.replace("}}]", '}}, {match: "*conv1d", weight: {dtype: int8, granularity: channel}}]')
    plan = make_plan(model, torchqat.parse_recipe(text, "recipe"))
    assert sum(layer.type == "Conv1d" for layer in plan.layers) == 2


def test_convolutions_over_all_channels_are_among_blocks():
    model = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2]))
    text = RECIPE.replace("group_size: 16", "granularity: channel")
    plan = make_plan(model, torchqat.parse_recipe(text, "recipe"))
    assert sum(layer.type == "Conv2d" for layer in plan.layers) > 8
