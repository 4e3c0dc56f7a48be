"""Learning rates of weights: relative to the distance between two of their levels, whatever the model and the width."""

import ml_dtypes
import numpy as np
import pytest
import torch
import torchqat
from torch import nn
from torchqat.training.weight_rates import share_of_rate

ROUNDED = "version: 1\nlayers: [{{match: '[02]', weight: {{{weight}}}}}]\ntrain: {{steps: 10{more}}}\n"


def recipe_of(weight="dtype: int4, group_size: 8", more=""):
    return torchqat.parse_recipe(ROUNDED.format(weight=weight, more=more))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def rate_of(groups, parameter):
    return next(group["lr"] for group in groups if any(p is parameter for p in group["params"]))


@pytest.mark.parametrize("scale", ["minmax", "mse", "learned"])
def test_a_weight_moves_by_a_share_of_the_distance_between_its_levels(scale):
    """One step of AdamW at the peak is the rate: 2e-3 of the step, for a weight 100 times as large as well."""
    recipe = recipe_of(f"dtype: int4, group_size: 8, scale: {scale}")
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(100)
    model = torchqat.prepare(model, recipe)
    optimizer = torch.optim.AdamW(torchqat.parameter_groups(model, recipe), eps=1e-30, weight_decay=0.0)
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    model(torch.randn(64, 32)).square().sum().backward()
    optimizer.step()
    for layer, old in zip((model[0], model[2]), before, strict=True):
        distance = layer.stored_qparams()[0].mean()  # of the levels of an integer: the scale
        moved = (layer.weight.detach() - old).abs()[layer.weight.grad != 0]
        assert torch.allclose(moved, (2e-3 * distance).expand_as(moved), rtol=1e-2)


def test_many_weights_for_few_tokens_move_less():
    settings = recipe_of(more=", batch_size: 2, sequence_length: 512").train
    assert share_of_rate(1_000, settings) == share_of_rate(5_000_000, settings) == 1.0
    assert share_of_rate(80_000_000, settings) == pytest.approx(0.25)
    settings = recipe_of(more=", batch_size: 2, sequence_length: 512, gradient_accumulation: 4").train
    assert share_of_rate(80_000_000, settings) == pytest.approx(0.5)
    assert share_of_rate(20_000_000, settings) == 1.0


def test_a_smaller_share_is_in_the_rates(monkeypatch):
    recipe = recipe_of()
    model = torchqat.prepare(net(), recipe)
    whole = rate_of(torchqat.parameter_groups(model, recipe), model[0].weight)
    monkeypatch.setattr("torchqat.training.weight_rates.WEIGHTS", (32 * 16 + 16 * 16) / 2 / 9)
    monkeypatch.setattr("torchqat.training.weight_rates.TOKENS", 1024)
    recipe = recipe_of(more=", batch_size: 2, sequence_length: 256")
    assert rate_of(torchqat.parameter_groups(model, recipe), model[0].weight) == pytest.approx(whole / 6)


@pytest.mark.parametrize("dtype, share", (("int2", 1.0), ("tq2_0", 1.0), ("int3", 1 / 3), ("mxfp4", 1 / 3)))
def test_at_2_bits_many_weights_move_as_few_do(dtype, share, monkeypatch):
    monkeypatch.setattr("torchqat.training.weight_rates.TOKENS", 1024)
    rates = []
    for weights in (10**9, 2 * 256 * 256 / 9):
        monkeypatch.setattr("torchqat.training.weight_rates.WEIGHTS", weights)
        recipe = recipe_of(f"dtype: {dtype}", more=", batch_size: 1, sequence_length: 1024")
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        model = torchqat.prepare(wide, recipe)
        rates.append(rate_of(torchqat.parameter_groups(model, recipe), model[0].weight))
    assert rates[1] == pytest.approx(rates[0] * share)


def test_what_is_not_rounded_moves_by_the_mean_of_these_rates():
    recipe = recipe_of()
    model = torchqat.prepare(net(), recipe)
    groups = torchqat.parameter_groups(model, recipe)
    rates = [rate_of(groups, model[i].weight) for i in (0, 2)]
    for parameter in (model[4].weight, model[3].weight, model[0].bias):
        assert rate_of(groups, parameter) == pytest.approx(sum(rates) / 2)


def test_weights_of_one_shape_share_a_group():
    """So that what groups there are does not depend on numbers, and an optimizer's state finds them again."""
    recipe = recipe_of("dtype: int4, group_size: 8, scale: learned", more="")
    alike = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    with torch.no_grad():
        alike[2].weight.mul_(10)
    model = torchqat.prepare(alike, recipe)
    groups = torchqat.parameter_groups(model, recipe)
    together = next(group for group in groups if group["params"][0] is model[0].weight)
    assert [p is model[i].weight for p, i in zip(together["params"], (0, 2), strict=True)] == [True, True]
    distances = [model[i].level_distance() for i in (0, 2)]
    assert together["lr"] == pytest.approx(2e-3 * sum(distances) / 2)


def test_a_weight_that_two_layers_share_moves_once():
    rules = ", ".join(f"{{match: '{name}', weight: {{dtype: int8}}}}" for name in (0, 1))
    recipe = torchqat.parse_recipe(f"version: 1\nlayers: [{rules}]\n")
    tied = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 16, bias=False))
    tied[1].weight = tied[0].weight
    model = torchqat.prepare(tied, recipe)
    groups = torchqat.parameter_groups(model, recipe)
    assert [[p is model[0].weight for p in group["params"]] for group in groups] == [[True]]


def test_a_rate_that_a_recipe_gives_is_that_of_all():
    recipe = recipe_of(more=", learning_rate: 1.0e-3")
    model = torchqat.prepare(net(), recipe)
    assert {group["lr"] for group in torchqat.parameter_groups(model, recipe)} == {1e-3}


def test_a_float_model_has_the_rate_of_adamw():
    assert {group["lr"] for group in torchqat.parameter_groups(net(), recipe_of())} == {2e-4}


FLOATS = {
    "fp4_e2m1": "float4_e2m1fn",
    "fp6_e2m3": "float6_e2m3fn",
    "fp6_e3m2": "float6_e3m2fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


@pytest.mark.parametrize("dtype", FLOATS)
def test_levels_of_floats_are_apart_as_at_a_quarter_of_the_largest(dtype):
    bits = 8 if "8" in dtype.split("_")[0] else 6 if "6" in dtype.split("_")[0] else 4
    codes = np.arange(2**bits, dtype=np.uint8).view(getattr(ml_dtypes, FLOATS[dtype])).astype(np.float64)
    levels = np.unique(codes[np.isfinite(codes)])
    above = levels[levels > levels.max() / 4]
    distance = above[0] - levels[levels <= levels.max() / 4][-1]
    model = torchqat.prepare(net(), recipe_of(f"dtype: {dtype}"))
    scale = model[0].stored_qparams()[0].mean().item()
    assert model[0].level_distance() == pytest.approx(distance * scale)


def test_widths_move_in_proportion():
    """INT2's levels are further apart than INT8's by the ratio of their scales, and so are the steps."""
    rates = {}
    for bits in (2, 8):
        recipe = recipe_of(f"dtype: int{bits}, group_size: 8")
        model = torchqat.prepare(net(), recipe)
        rates[bits] = rate_of(torchqat.parameter_groups(model, recipe), model[0].weight)
    assert rates[2] / rates[8] == pytest.approx(127, rel=1e-3)


def test_sgd_is_not_told_a_rate_of_adamw():
    with pytest.raises(torchqat.RecipeError, match="train.learning_rate must be given where optimizer is sgd"):
        recipe_of(more=", optimizer: sgd")
    assert recipe_of(more=", optimizer: sgd, learning_rate: 0.1").train.learning_rate == 0.1


def test_one_rate_excludes_the_other():
    with pytest.raises(torchqat.RecipeError, match="relative_learning_rate must not be given beside learning_rate"):
        recipe_of(more=", learning_rate: 0.1, relative_learning_rate: 0.1")
