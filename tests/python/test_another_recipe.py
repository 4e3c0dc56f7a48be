"""A schedule follows the recipe that the model was prepared by: rules of another one would count for nothing, unsaid."""

import copy
import pickle

import pytest
import torch
import torchqat
from sentences import matches
from torch import nn

RULES = "version: 1\nlayers:\n  - {match: '0', weight: {dtype: DTYPE, group_size: 8}MORE}\n"


def recipe(dtype="int4", more="", rest=""):
    return torchqat.parse_recipe(RULES.replace("DTYPE", dtype).replace("MORE", more) + rest)


def net():
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))


WIDER = "  - {match: '2', weight: {dtype: int8, group_size: 8}}\n"
OTHERS = {
    "another width": (("int8",), "weight", "0", "int4 group 8", "int8 group 8"),
    "inputs as well": (("int4", ", input: {dtype: int8}"), "input", "0", "float", "int8"),
    "another layer": (("int4", "", WIDER), "weight", "2", "float", "int8 group 8"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("around", ("itself", "another module", "a copy"))
def test_a_recipe_with_other_layers_is_refused(name, around):
    given, what, layer, prepared, asked = OTHERS[name]
    model = torchqat.prepare(net(), recipe())
    model = {"itself": model, "another module": nn.Sequential(model), "a copy": copy.deepcopy(model)}[around]
    expected = matches("training.another-recipe", what=what, layer=layer)
    with pytest.raises(torchqat.UserError, match=expected) as refused:
        torchqat.Schedule(model, recipe(*given), 4)
    assert f"is {asked}" in str(refused.value) and f"as {prepared}" in str(refused.value)


def test_a_rule_that_matches_none_of_them_is_an_error_as_in_prepare():
    model = torchqat.prepare(net(), recipe())
    with pytest.raises(torchqat.RecipeError, match="matches none of 2 layers"):
        torchqat.Schedule(model, recipe(rest=WIDER.replace("'2'", "'7'")), 4)


def test_other_steps_and_stages_are_the_schedules_own():
    model = torchqat.prepare(net(), recipe())
    stages = "schedule: [{until: 50%, weight: int8}, {until: 100%, weight: int4}]\ntrain: {steps: 9}\n"
    schedule = torchqat.Schedule(model, recipe(rest=stages), 4)
    assert schedule.weight_bits == 8


def test_plans_and_pickles_have_no_recipe_to_compare():
    by_plan = torchqat.prepare(model := net(), torchqat.make_plan(model, recipe()))
    loaded = pickle.loads(pickle.dumps(torchqat.prepare(net(), recipe())))
    for model in (by_plan, loaded):
        torchqat.Schedule(model, recipe(), 4)
        assert model(torch.ones(1, 32)).shape == (1, 8)


@pytest.mark.parametrize("given", ("int4", {"layers": []}, None))
def test_what_is_no_recipe_is_told(given):
    for used in (torchqat.prepare, torchqat.make_plan):
        with pytest.raises(torchqat.UserError, match=matches("model.no-recipe", type=type(given).__name__)):
            used(net(), given)
