"""``QuantLinear``, ``prepare`` and ``convert``: names stay, and converted weights are those of the forward."""

import copy

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torch import nn
from torchqat import QuantLinear, QuantSpec

WEIGHTS = [
    "{dtype: int4, group_size: 32}",
    "{dtype: int4, group_size: 16, scale: mse, grid: full}",
    "{dtype: int3, scale: learned, symmetric: false}",
    "{dtype: int8, scale: learned, grid: signed, granularity: tensor}",
    "{dtype: int2, block: [4, 8], symmetric: false}",
]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_state_dict_keeps_the_float_keys(weight):
    net = Net()
    keys = set(net.state_dict())
    prepared = torchqat.prepare(net, recipe_for(weight))
    assert keys <= set(prepared.state_dict())
    added = {key.rpartition(".")[2] for key in set(prepared.state_dict()) - keys}
    assert added <= {"weight_scale", "weight_zero_point", "widths", "witness", "quantizer_text", "qat_step"}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_float_checkpoints_load_into_prepared_models_and_back(weight):
    source = Net()
    prepared = torchqat.prepare(Net(), recipe_for(weight))
    prepared.load_state_dict(source.state_dict())
    fresh = torchqat.prepare(copy.deepcopy(source), recipe_for(weight))
    x = torch.randn(3, 64)
    assert torch.equal(prepared(x), fresh(x))  # the scales were derived from the loaded weights
    back = Net()
    assert back.load_state_dict(prepared.state_dict(), strict=False).missing_keys == []
    assert torch.equal(back.first.weight, source.first.weight)


def test_prepared_state_round_trips_strictly():
    net = torchqat.prepare(Net(), recipe_for(WEIGHTS[2]))
    with torch.no_grad():
        net.first.weight_scale.mul_(1.1)
        net.first.weight_zero_point.add_(0.7)
    twin = torchqat.prepare(Net(), recipe_for(WEIGHTS[2]))
    twin.load_state_dict(net.state_dict(), strict=True)
    x = torch.randn(3, 64)
    assert torch.equal(net(x), twin(x))


def test_parameters_are_shared_with_optimizers_made_before():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torchqat.prepare(net, recipe_for(WEIGHTS[0]))
    before = net.first.weight.detach().clone()
    net(torch.randn(3, 64)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net.first.weight, before)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_converted_weights_are_those_of_the_forward(weight, dtype):
    net = torchqat.prepare(Net().to(dtype), recipe_for(weight))
    for converted in torchqat.convert(net):
        layer = net.get_submodule(converted.name)
        assert converted.scale.dtype == dtype
        assert torch.equal(converted.dequantize(), layer.quantized_weight())


def test_converting_to_bfloat16_rounds_once():
    net = torchqat.prepare(Net(), recipe_for(WEIGHTS[0]))
    for converted in torchqat.convert(net, torch.bfloat16):
        assert torch.equal(converted.dequantize(), net.get_submodule(converted.name).quantized_weight().bfloat16())


def test_learned_scales_train():
    net = torchqat.prepare(Net(), recipe_for(WEIGHTS[2]))
    x = torch.randn(16, 64)
    target = torch.randn(16, 8)
    optimizer = torch.optim.Adam([net.first.weight_scale, net.first.weight_zero_point], lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_inputs_per_token():
    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", "{dtype: int8}"))
    x = torch.randn(2, 5, 64)
    expected = torchqat.ops.fake_quantize_dynamic(x, (1, -1), 8, "narrow", torch.float32)[0]
    assert torch.equal(net.first.quantized_input(x), expected)


@pytest.mark.parametrize("grid", ("narrow", "full", "signed"))
def test_inputs_in_groups_have_a_scale_each(grid):
    """Of each token's features, as the twin finds them."""
    import reference

    net = torchqat.prepare(Net(), recipe_for("{dtype: int8}", f"{{dtype: int8, group_size: 16, grid: {grid}}}"))
    x = torch.randn(2, 3, 64) * torch.linspace(0.1, 30, 64)
    rows = x.reshape(6, 64)
    scale, zero = reference.qparams(rows, (1, 16), 8, grid, torch.float32)
    expected = reference.fake_quantize(rows, scale, zero, (1, 16), *reference.quant_range(8, grid))
    assert torch.equal(net.first.quantized_input(x).reshape(6, 64), expected)
    net(x).sum().backward()
    assert net.first.weight.grad.isfinite().all()


def test_delayed_layers_are_float():
    layer = QuantLinear(nn.Linear(8, 8), QuantSpec(4), None)
    layer.set_bits(0, 0)
    assert layer.quantized_weight() is layer.weight


def test_prepare_names_a_weight_that_is_not_finite():
    net = Net()
    with torch.no_grad():
        net.second.weight[0, 0] = float("nan")
    with pytest.raises(torchqat.UserError, match=matches("model.layer-not-finite", layer="second", count=1)):
        torchqat.prepare(net, recipe_for(WEIGHTS[0]))
    assert type(net.first) is nn.Linear  # nothing was changed


def test_convert_names_a_weight_that_became_nan():
    net = torchqat.prepare(Net(), recipe_for(WEIGHTS[0]))
    with torch.no_grad():
        net.first.weight[3] = float("inf")
    with pytest.raises(torchqat.UserError, match=matches("model.layer-not-finite", layer="first", count=64)):
        torchqat.convert(net)


def test_prepare_twice_is_refused():
    net = torchqat.prepare(Net(), recipe_for(WEIGHTS[0]))
    with pytest.raises(torchqat.UserError, match=matches("model.prepared-already")):
        torchqat.prepare(net, recipe_for(WEIGHTS[0]))


def test_convert_wants_a_prepared_model():
    with pytest.raises(torchqat.UserError, match=matches("export.no-quantized-layers")):
        torchqat.convert(Net())


def test_an_indivisible_group_names_the_layer():
    values = {"layers": "second", "features": "in_features", "size": 32, "block": 64, "power": 32}
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.group-does-not-divide", **values)):
        torchqat.prepare(Net(), recipe_for("{dtype: int4, group_size: 64}"))


def test_heads_and_tied_weights_are_left_alone_unless_named(tiny_llama):
    recipe = recipe_for("{dtype: int8}")
    assert all(layer.name != "lm_head" for layer in torchqat.make_plan(tiny_llama, recipe).layers)
    asked = torchqat.parse_recipe("version: 1\nlayers:\n  - {match: lm_head, weight: {dtype: int8}}\n")
    assert [layer.name for layer in torchqat.make_plan(tiny_llama, asked).layers] == ["lm_head"]


def test_save_and_load_with_transformers(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    weight = tiny_llama.model.layers[0].mlp.up_proj.weight.detach().clone()
    torchqat.prepare(tiny_llama, recipe_for("{dtype: int4, group_size: 32, scale: learned}")).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, weight)


def test_a_compiled_layer_takes_note_of_its_inputs():
    of = recipe_for("{dtype: int4, group_size: 16}", "{dtype: int8, granularity: tensor}")
    model = torchqat.prepare(nn.Sequential(nn.Linear(32, 8)), of)
    torchqat.calibrate(model, [torch.randn(4, 32)])
    torchqat.Schedule(model, of, 4)
    compiled, x = copy.deepcopy(model), 100 * torch.randn(4, 32)
    compiled.compile(backend="eager")
    before = model[0].input_high.clone()
    torch.testing.assert_close(compiled.train()(x), model.train()(x))
    assert compiled[0].input_high == model[0].input_high > before


def test_compile_and_deepcopy(tiny_llama):
    model = torchqat.prepare(tiny_llama, recipe_for("{dtype: int4, group_size: 32, scale: learned}", "{dtype: int8}"))
    tokens = torch.randint(0, 400, (2, 16))
    expected = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(copy.deepcopy(model)(input_ids=tokens, use_cache=False).logits, expected)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(4, 64)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-5, atol=1e-5)
