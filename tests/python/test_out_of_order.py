"""What is done to a model after ``prepare`` that takes it out of training's reach is refused or told."""

import pytest
import torch
import torchqat
from sentences import matches, sentence
from small_net import Net, recipe_for
from torch import nn

INT8 = "{dtype: int8, scale: mse}"
BLOCKS = 'version: 1\nlayers:\n  - {match: "model.layers.*", weight: {dtype: int4, group_size: 32, scale: learned}}\n'


class Own(nn.Module):
    """A layer of no class that torchqat knows."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(64, 64))

    def forward(self, x):
        return x @ self.kernel.t()


@pytest.fixture
def recipe():
    return torchqat.parse_recipe(BLOCKS)


def test_a_layer_of_any_class_in_place_of_a_quantized_one_is_refused(tiny_llama, recipe, tmp_path):
    model = torchqat.prepare(tiny_llama, recipe)
    model.model.layers[0].self_attn.o_proj = Own()
    said = matches("noted.replaced", layer="model.layers.0.self_attn.o_proj")
    with pytest.raises(torchqat.UserError, match=said):
        torchqat.export(model, tmp_path / "out")
    with pytest.raises(torchqat.UserError, match=said):
        torchqat.Schedule(model, recipe, 4)


def test_what_wraps_a_quantized_layer_or_removes_it_is_not(recipe):
    net = torchqat.prepare(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), recipe_for(INT8))
    net[0], net[1] = nn.Sequential(net[0]), nn.Identity()
    torchqat.Schedule(net, recipe_for(INT8), 4)


def test_layers_that_came_after_prepare_are_told(tiny_llama, recipe, tmp_path):
    model, notes = torchqat.prepare(tiny_llama, recipe), []
    torchqat.export(model, tmp_path / "as-it-is", say=notes.append)
    assert not notes
    model.more = nn.ModuleList([nn.Linear(64, 8), nn.Sequential(Own(), nn.Linear(8, 8))])
    torchqat.export(model, tmp_path / "out", say=notes.append)
    assert notes[0] == sentence("noted.added", first="more.0", more=" and 1 more")


@pytest.mark.parametrize("scheduled", (False, True))
def test_adapters_that_act_beside_rounded_weights_are_refused_whenever_they_came(
    tiny_llama, recipe, tmp_path, scheduled
):
    peft = pytest.importorskip("peft")
    model = torchqat.prepare(tiny_llama, recipe)
    schedule = torchqat.Schedule(model, recipe, 4) if scheduled else None
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=4))
    said = matches("training.adapters-beside", layer="model.layers.0.self_attn.q_proj")
    if schedule is not None:
        with pytest.raises(torchqat.UserError, match=said):
            schedule.step()
    with pytest.raises(torchqat.UserError, match=said):
        torchqat.export(model, tmp_path / "out")
    torchqat.attach_adapters(adapted)
    if schedule is not None:
        schedule.step()
    with pytest.raises(torchqat.UserError, match=matches("export.adapter-not-merged")):
        torchqat.export(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ("hook", "pre_hook"))
def test_backward_hooks_of_a_layer_go_on(kind):
    net, seen = Net(), []
    getattr(net.first, f"register_full_backward_{kind}")(lambda layer, *gradients: seen.append(type(layer)))
    torchqat.prepare(net, recipe_for(INT8))
    x = torch.randn(3, 64, requires_grad=True)
    net(x).sum().backward()
    assert seen == [torchqat.QuantLinear]


def test_a_backward_hook_still_changes_the_gradient():
    net = Net()
    net.first.register_full_backward_hook(lambda layer, given, _: (given[0] * 0,))
    torchqat.prepare(net, recipe_for(INT8))
    x = torch.randn(3, 64, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.abs().sum() == 0


def test_a_class_that_changes_its_call_is_named():
    class Doubled(nn.Linear):
        def __call__(self, x):
            return super().__call__(x) * 2

    net = Net()
    net.first = Doubled(64, 32)
    with pytest.raises(torchqat.RecipeError, match="Doubled has a __call__ of its own"):
        torchqat.prepare(net, recipe_for(INT8))


def test_an_optimizer_without_the_learned_scales_is_told():
    net, said = Net(), []
    recipe = recipe_for("{dtype: int4, group_size: 32, scale: learned}")
    earlier = torch.optim.AdamW(net.parameters(), 1e-3)
    torchqat.prepare(net, recipe)
    torchqat.Schedule(net, recipe, 4, earlier, say=said.append)
    facts = {"optimizer": "AdamW", "first": "first.weight_scale", "count": 2}
    assert said == [sentence("training.scales-in-no-group", **facts)]
    for later in (torchqat.parameter_groups(net, recipe), [nn.Parameter(torch.ones(2))]):
        torchqat.Schedule(net, recipe, 4, torch.optim.AdamW(later, 1e-3), say=said.append)
    for scale in (net.first.weight_scale, net.second.weight_scale):
        scale.requires_grad_(False)
    torchqat.Schedule(net, recipe, 4, earlier, say=said.append)
    assert len(said) == 1
