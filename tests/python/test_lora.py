"""LoRA adapters that are added before weights are rounded: merging them changes no bit."""

import copy

import peft
import pytest
import torch
import torchqat
from command import call
from sentences import matches, said
from torch import nn
from torchqat._library import LoraSection
from torchqat.layers.prepared import quant_layers
from torchqat.training.lora import add_adapters, merge_adapters

RECIPE = """version: 1
layers:
  - match: "*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: SCALE}
"""


def prepared(scale="learned"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    return torchqat.prepare(model, torchqat.parse_recipe(RECIPE.replace("SCALE", scale), "recipe"))


def settings(rank=4):
    found = LoraSection()
    found.rank = rank
    return found


def train(model, steps=5):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
def test_merging_changes_no_bit(scale):
    model = train(add_adapters(prepared(scale), settings()))
    x = torch.randn(4, 64)
    before = model(x)
    weights = [layer.quantized_weight().clone() for _, layer in quant_layers(model)]
    merge_adapters(model)
    assert torch.equal(model(x), before)
    assert [type(layer).__name__ for _, layer in quant_layers(model)] == ["QuantLinear"] * 2
    for (name, layer), weight in zip(quant_layers(model), weights, strict=True):
        assert "lora" not in name and torch.equal(layer.quantized_weight(), weight)
    for converted, weight in zip(torchqat.convert(model), weights, strict=True):
        assert torch.equal(converted.dequantize(torch.float32), weight)


def test_mixed_precision_leaves_the_sum_as_it_will_be_merged():
    model = train(add_adapters(prepared(), settings()))
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
    merge_adapters(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), before)


def test_the_forward_rounds_the_sum():
    model = train(add_adapters(prepared(), settings()))
    lora = model[0]
    weight = lora.base_layer.weight + lora.lora_B["default"].weight @ lora.lora_A["default"].weight * (32.0 / 4)
    assert torch.equal(lora.base_layer.master, weight)
    assert not torch.equal(weight, lora.base_layer.weight)


def test_adapters_and_scales_alone_train():
    model = add_adapters(prepared(), settings())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or name.endswith("weight_scale") for name in trained)
    before = copy.deepcopy(dict(model.named_parameters()))
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name


def test_gradients_pass_through_the_quantizer():
    model = add_adapters(prepared("minmax"), settings())
    model(torch.randn(4, 64)).sum().backward()
    assert model[0].lora_B["default"].weight.grad.abs().sum() > 0  # A has none yet, since B begins at zero


def test_a_model_that_peft_wrapped():
    base = prepared()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"])
    model = torchqat.attach_adapters(peft.get_peft_model(base, config))
    train(model)
    x = torch.randn(4, 64)
    before = model(x)
    with model.disable_adapter():
        assert not torch.equal(model(x), before)
    merged = model.merge_and_unload()
    assert torch.equal(merged(x), before)
    assert [name for name, _ in quant_layers(merged)] == ["0", "2"]


def test_adapters_come_after_prepare():
    model = peft.get_peft_model(nn.Sequential(nn.Linear(64, 64)), peft.LoraConfig(r=4, target_modules=["0"]))
    layer = "base_model.model.0"
    with pytest.raises(torchqat.UserError, match=matches("model.adapted-already", layer=layer)):
        torchqat.prepare(model, torchqat.parse_recipe(RECIPE.replace("SCALE", "mse"), "recipe"))


def test_unmerging_gives_the_adapter_back():
    model = train(add_adapters(prepared(), settings()))
    x = torch.randn(4, 64)
    before = model(x)
    model[0].merge()
    assert torch.equal(model(x), before)
    model[0].unmerge()
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)  # the weight is the sum less what was added


def test_a_copy_has_adapters_of_its_own():
    model = add_adapters(prepared(), settings())
    other = copy.deepcopy(model)
    train(model)
    assert torch.equal(other[0].base_layer.master, other[0].base_layer.weight)


VARIANTS = {
    "dropout of adapters": ({"lora_dropout": 0.1}, "dropout, which is of its input"),
    "DoRA": ({"use_dora": True}, "DoRA, which scales the sum"),
    "lora_bias": ({"lora_bias": True}, "a bias of its own (lora_bias)"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "a forward of its own (ALoraLinearVariant)"),
}


@pytest.mark.shows(trainer="peft", refused=True)
@pytest.mark.parametrize("variant", [pytest.param(name, marks=pytest.mark.shows(feature=name)) for name in VARIANTS])
def test_what_cannot_be_merged_is_refused(variant):
    options, what = VARIANTS[variant]
    model = peft.get_peft_model(prepared(), peft.LoraConfig(r=4, target_modules=["0"], **options))
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-with-more", what=what)):
        torchqat.attach_adapters(model)


@pytest.mark.shows(trainer="peft")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"use_rslora": True}, marks=pytest.mark.shows(feature="rsLoRA")),
        pytest.param({"init_lora_weights": "pissa"}, marks=pytest.mark.shows(feature="PiSSA")),
        pytest.param({"rank_pattern": {"0": 2}}, marks=pytest.mark.shows(feature="a rank for each layer")),
    ],
)
def test_what_adds_to_the_weight_alone_is_merged(options):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], **options)
    model = train(torchqat.attach_adapters(peft.get_peft_model(prepared(), config)))
    x = torch.randn(4, 64)
    before = model(x)
    lora = model.base_model.model[0]
    scaling = 8 / 4**0.5 if "use_rslora" in options else 8 / lora.r["default"]
    weight = lora.base_layer.weight + lora.lora_B["default"].weight @ lora.lora_A["default"].weight * scaling
    assert torch.equal(lora.base_layer.master, weight)
    assert torch.equal(model.merge_and_unload()(x), before)


@pytest.mark.shows(trainer="peft", feature="adapters of embeddings", refused=True)
def test_an_adapter_of_an_embedding_is_refused():
    text = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32, scale: mse}}]\n'
    rules = text.replace("*", "0").replace(
        "]\n", ', {match: "1", weight: {dtype: int4, group_size: 32, scale: mse}}]\n'
    )
    net = nn.Sequential(nn.Embedding(16, 64), nn.Linear(64, 8))
    model = torchqat.prepare(net, torchqat.parse_recipe(rules, "recipe"))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["0", "1"]))
    layer = "base_model.model.0"
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-of-another-layer", layer=layer)):
        torchqat.attach_adapters(model)


@pytest.mark.shows(trainer="peft", feature="target_parameters of experts", refused=True)
def test_an_adapter_of_experts_is_refused():
    from test_experts import build, recipe_of

    model = torchqat.prepare(build("qwen3_moe"), recipe_of())
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
    model = peft.get_peft_model(model, config)
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-of-another-layer")):
        torchqat.attach_adapters(model)


def test_adapters_must_be_there():
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-missing")):
        torchqat.attach_adapters(prepared())
    with pytest.raises(torchqat.UserError, match=matches("model.not-prepared")):
        add_adapters(nn.Linear(4, 4), settings())


def test_an_adapter_that_is_not_merged_is_not_exported(tmp_path):
    model = add_adapters(prepared(), settings())
    with pytest.raises(torchqat.UserError, match=matches("export.adapter-not-merged")):
        torchqat.export(model, tmp_path / "out", "safetensors")


def test_an_adapter_beside_the_rounded_weight_is_told_before_it_trains_and_before_it_is_merged(tmp_path):
    """Merged, it would make a weight that no forward has seen."""
    model = prepared()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), model)
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-beside", layer="0")):
        torchqat.parameter_groups(model, torchqat.parse_recipe(RECIPE.replace("SCALE", "learned"), "recipe"))
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-beside", layer="0")):
        torchqat.export(model, tmp_path / "out", "safetensors")


LORA = """version: 1
data: {calibration: {samples: 2, sequence_length: 32}, evaluation: {samples: 4, sequence_length: 32}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int4, group_size: 32, grid: full, scale: learned}
initialize: {method: gptq}
train: {steps: 6, batch_size: 2, sequence_length: 32, checkpoint_every: 2, validate_every: 3, parameters: lora,
        learning_rate: 1.0e-3, lora: {rank: 4, alpha: 8}}
"""


def test_a_run_with_lora_is_exported_and_found_again(capsys, tmp_path, model_folder, data_folder):
    (tmp_path / "recipe.yaml").write_text(LORA)
    arguments = ["--model", str(model_folder), "--data", str(data_folder), "--output", str(tmp_path / "run")]
    code, out, err = call(capsys, "run", str(tmp_path / "recipe.yaml"), *arguments)
    assert code == 0, err
    exported = tmp_path / "run" / "exports" / "compressed-tensors"
    code, out, err = call(capsys, "verify", str(exported), "--engine", "reader")
    assert code == 0 and said(out, "verify.equal", layers=14), err


def test_what_has_no_adapter_is_said():
    from test_experts import build, recipe_of
    from torchqat.training.lora import without_adapter

    assert without_adapter(prepared()) == ""
    model = torchqat.prepare(build("qwen3_moe"), recipe_of())
    first = {"first": "model.layers.0.mlp.experts.gate_up_proj", "more": " and 3 more"}
    assert said(without_adapter(model), "training.no-adapter", **first)


def by_peft(model):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "2"], init_lora_weights=False))


@pytest.mark.parametrize("take", [torchqat.convert, torchqat.pack])
def test_adapters_beside_rounded_weights_are_not_left_out_in_silence(take):
    adapted = by_peft(prepared())
    with pytest.raises(torchqat.UserError, match=matches("training.adapters-beside", layer="base_model.model.0")):
        take(adapted)
