"""What peft saves of its adapters: scales, widths and the step of the model beside them."""

import copy

import peft
import pytest
import torch
import torchqat
from test_lora import RECIPE, train
from torch import nn
from torchqat.layers.prepared import quant_layers


@pytest.mark.shows(trainer="peft", feature="checkpoints of adapters hold the scales")
def test_what_peft_saves_has_the_scales_and_widths(tmp_path):
    text = RECIPE.replace("SCALE", "learned") + "schedule: [{until: 50%, weight: int8}, {until: 100%}]\n"
    recipe = torchqat.parse_recipe(text, "recipe")

    def start():
        torch.manual_seed(0)
        model = torchqat.prepare(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), recipe)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
        return torchqat.attach_adapters(peft.get_peft_model(model, config))

    model = start()
    schedule = torchqat.Schedule(model, recipe, 8)
    train(model)
    schedule.step()
    model.save_pretrained(tmp_path)
    other = start()
    other.load_adapter(tmp_path, "default", is_trainable=True)
    assert [layer.weight_bits for _, layer in quant_layers(other)] == [8, 8]
    assert torchqat.Schedule(other, recipe, 8).current_step == 1
    x = torch.randn(4, 64)
    assert torch.equal(other(x), model(x))
    merged = other.merge_and_unload()
    assert not [name for name in merged.state_dict() if "lora" in name]


def test_what_peft_saves_has_the_scales_of_caches(tiny_llama, tmp_path):
    """A model that was not calibrated passed keys and values as they were, though its inputs were rounded."""
    rule = 'layers: [{match: "*layers.*", weight: {dtype: int4}, input: {dtype: int8, granularity: tensor}}]'
    recipe = torchqat.parse_recipe(f"version: 1\n{rule}\nkv_cache: {{dtype: fp8_e4m3}}\n")

    def start():
        return torchqat.prepare(copy.deepcopy(tiny_llama), recipe)

    def adapted(model):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        return torchqat.attach_adapters(peft.get_peft_model(model, config)).eval()

    tokens = torch.randint(0, 400, (2, 16))
    model = start()
    torchqat.calibrate(model, [tokens], lambda model, batch: model(input_ids=batch, use_cache=False))
    model = adapted(model)
    model.save_pretrained(tmp_path)
    other = adapted(start())
    other.load_adapter(tmp_path, "default", is_trainable=True)
    with torch.no_grad():
        given, found = (m.eval()(input_ids=tokens, use_cache=False).logits for m in (model, other))
    assert torch.equal(given, found)
