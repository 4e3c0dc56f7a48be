"""Sensitivity of layers, and the mix of widths that follows from it."""

import copy
import re

import architectures
import pytest
import torch
import torchqat
from architectures import recipe, tokens
from sentences import matches, said
from torchqat._library import QuantSpec, allocate_widths
from torchqat.evaluation.mixed_widths import mixed_recipe, mixed_widths
from torchqat.evaluation.sensitivity import LayerSensitivity, sensitivity
from torchqat.layers.prepared import quant_layers
from torchqat.ptq.blocks import in_floating_point

WEIGHT = "{dtype: int4, group_size: 32, grid: full, scale: mse}"


@pytest.fixture(scope="module")
def llama():
    return architectures.build("Llama")


@pytest.fixture(scope="module")
def measured(llama):
    plan = torchqat.make_plan(llama, recipe("{method: mse}", WEIGHT))
    return sensitivity(llama, plan, tokens(), (2, 4, 8))


def direct_kl(llama, name):
    """With that layer alone at 2 bits, its scale searched by hand for all that it is given."""
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: mse}", WEIGHT))
    with in_floating_point(prepared), torch.no_grad():
        layer = dict(quant_layers(prepared))[name]
        inputs = []
        handle = layer.register_forward_pre_hook(lambda _, x, seen=inputs: seen.append(x[0].flatten(0, 1)))
        expected = [prepared(input_ids=b).logits.double().log_softmax(-1) for b in tokens()]
        handle.remove()
        x = torch.cat(inputs).double()
        scale, zero = torchqat.ops.choose_qparams(
            layer.weight, (1, 32), 2, "full", "mse", torch.bfloat16, x.square().mean(0).float()
        )
        layer.weight.copy_(torchqat.ops.fake_quantize(layer.weight.clone(), scale, zero, (1, 32), -2, 1))
        rounded = [prepared(input_ids=b).logits.double().log_softmax(-1) for b in tokens()]
        kl = sum((p.exp() * (p - q)).sum().item() for p, q in zip(expected, rounded, strict=True))
    return kl / sum(b.numel() for b in tokens())


def test_it_is_the_kl_with_one_layer_quantized(llama, measured):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: mse}", WEIGHT))
    assert [layer.name for layer in measured] and {layer.name for layer in measured} == set(
        dict(quant_layers(prepared))
    )
    for found in (measured[0], measured[-1]):
        assert found.kl[2] == pytest.approx(direct_kl(llama, found.name), rel=0.02)


def test_a_layer_that_two_blocks_hold_is_quantized_in_both(llama):
    model = copy.deepcopy(llama)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    plan = torchqat.make_plan(model, recipe("{method: mse}", WEIGHT))
    name = "model.layers.0.mlp.up_proj"
    found = {layer.name: layer.kl[2] for layer in sensitivity(model, plan, tokens(), (2,))}
    assert found[name] == pytest.approx(direct_kl(model, name), rel=0.02)


def test_more_bits_are_nearer_and_the_model_stays(llama, measured):
    for layer in measured:
        assert layer.kl[2] > layer.kl[4] > layer.kl[8] >= 0
    assert not quant_layers(llama)


def losses_within(measured, budgets):
    """Of the mix that each budget gives: it is met, fused layers are alike, and more bits lose less."""
    elements = sum(layer.elements for layer in measured)
    losses = []
    for budget in budgets:
        widths = mixed_widths(measured, budget)
        assert sum(layer.size(widths[layer.name]) for layer in measured) <= budget * elements
        losses.append(sum(layer.kl[widths[layer.name]] for layer in measured))
        for name, width in widths.items():
            if name.endswith("q_proj"):
                assert width == widths[name.replace("q_proj", "k_proj")] == widths[name.replace("q_proj", "v_proj")]
    assert losses == sorted(losses, reverse=True)
    return losses


def test_a_mix_within_the_budget(measured):
    losses_within(measured, (2.5, 4.0, 4.6, 8.5))
    assert set(mixed_widths(measured, 8.5).values()) == {8}
    uniform = sum(layer.kl[4] for layer in measured)
    assert sum(layer.kl[w] for layer, w in zip(measured, mixed_widths(measured, 4.5).values(), strict=True)) <= uniform


def test_sizes_are_those_of_a_checkpoint(llama, measured):
    prepared = torchqat.prepare(copy.deepcopy(llama), recipe("{method: rtn}", WEIGHT))
    for found, weights in zip(
        sorted(measured, key=lambda layer: layer.name),
        sorted(torchqat.convert(prepared, torch.bfloat16), key=lambda w: w.name),
        strict=True,
    ):
        assert found.size(4) == pytest.approx(weights.bits_per_weight * weights.codes.numel())


def test_the_mix_is_a_recipe_that_gives_these_widths(llama, measured):
    widths = mixed_widths(measured, 4.6)
    text = mixed_recipe(recipe("{method: gptq}", WEIGHT).text, measured, widths)
    plan = torchqat.make_plan(llama, torchqat.parse_recipe(text, "mixed"))
    assert {layer.name: layer.weight.bits for layer in plan.layers} == widths
    assert all(layer.weight.group_size == 32 and layer.weight.grid == "full" for layer in plan.layers)


def test_bad_input_has_its_sentence(llama, measured):
    plan = torchqat.make_plan(llama, recipe("{method: mse}", WEIGHT))
    with pytest.raises(torchqat.UserError, match=matches("evaluate.no-batches-for-sensitivity")):
        sensitivity(llama, plan, [])
    with pytest.raises(torchqat.UserError, match=matches("evaluate.budget-too-small", least="2.500", budget=2.1)):
        mixed_widths(measured, 2.1)
    with pytest.raises(ValueError, match=matches("evaluate.no-widths")):
        allocate_widths([[]], 3)


@pytest.mark.parametrize("layers", ["layers: {weight: {dtype: int4}}", "layers:\n  # all\n  weight: {dtype: int4}"])
def test_a_mix_is_written_after_a_list_of_rules(layers):
    with pytest.raises(torchqat.UserError, match=matches("evaluate.mixed-without-list")):
        mixed_recipe(f"version: 1\n{layers}\n", [], {})


def test_the_command_prints_writes_and_draws(model_folder, data_folder, recipe_file, tmp_path, capsys):
    from torchqat.cli import main

    mixed, picture = tmp_path / "mixed.yaml", tmp_path / "picture.svg"
    arguments = ["sensitivity", str(recipe_file), "--model", str(model_folder), "--data", str(data_folder)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--bits", "2,4,8", "--budget", "5", "--write", str(mixed)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "model.layers.0.self_attn.q_proj" in printed and said(printed, "evaluate.within-budget", budget=5.0)
    torchqat.load_recipe(str(mixed))
    with pytest.raises(SystemExit) as ended:
        main(
            [*arguments, "--bits", "4,8", "--budget", "5"]
        )  # of a float32 model scales are stored in 32 bits, for 32 weights
    assert ended.value.code == 0 and said(capsys.readouterr().out, "evaluate.within-budget", bits="5.000", budget=5.0)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--bits", "4", "--plot", str(picture)])
    assert ended.value.code == 0 and picture.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "1,4"], matches("evaluate.bits-of-no-width", text="1,4")),
        (["--write", "x"], matches("evaluate.write-without-budget")),
        (["--plot", "x.jpg"], matches("evaluate.no-picture", path="x.jpg")),
    ],
)
def test_the_command_says_what_is_wrong(options, message, recipe_file, capsys):
    from torchqat.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["sensitivity", str(recipe_file), *options])
    assert ended.value.code == 2 and re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("layers", "budget", "message"),
    [
        ("layers: [{match: blocks, weight: {dtype: nvfp4}}]", "4", matches("evaluate.budget-too-small", budget=4.0)),
        ("layers: [{match: blocks, weight: {dtype: int4}}]", "5", matches("evaluate.mixed-without-list")),
    ],
)
def test_a_mix_that_cannot_be_is_said_before_data_are_read(layers, budget, message, model_folder, tmp_path, capsys):
    from torchqat.cli import main

    path = tmp_path / "recipe.yaml"
    path.write_text(f"version: 1\n{layers}\n")
    options = ["--budget", budget, "--write", str(tmp_path / "mixed.yaml"), "--data", str(tmp_path / "absent")]
    with pytest.raises(SystemExit) as ended:
        main(["sensitivity", str(path), "--model", str(model_folder), *options])
    assert ended.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_all_experts_have_one_width():
    """Engines and transformers read the experts of a model by one scheme."""
    spec = QuantSpec(4)
    kl = {4: 1.0, 8: 0.0}
    names = ["model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"]
    measured = [LayerSensitivity(name, spec, kl, (64, 64)) for name in names]
    measured.append(LayerSensitivity("model.layers.0.self_attn.o_proj", spec, {4: 0.1, 8: 0.0}, (64, 64)))
    widths = mixed_widths(measured, 6.0)
    assert widths[names[0]] == widths[names[1]] == 4 and widths["model.layers.0.self_attn.o_proj"] == 8
