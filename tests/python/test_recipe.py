"""Recipes as Python sees them; the reader itself is tested in C++."""

from pathlib import Path

import pytest
import torchqat
from sentences import matches

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_fit_their_model(path):
    from torchqat.runs.scratch import new_model

    recipe = torchqat.load_recipe(str(path))
    if recipe.model.scratch is None:
        return  # tests/python/test_recipes_run.py gives it a model
    model = new_model(recipe.model.scratch, recipe.model.scratch.vocabulary, 0)
    plan = torchqat.make_plan(model, recipe)
    assert len(plan.layers) == 7 * recipe.model.scratch.layers
    reasons = {weight.why for weight in plan.left}
    lines = len(plan.layers) + 2 + len(reasons) + len(plan.stages) + (plan.kv_cache is not None)
    assert str(plan).count("\n") == lines


def test_the_quickstart_comments_every_key():
    import re

    text = (Path(__file__).parents[2] / "recipes" / "quickstart.yaml").read_text()
    root = Path(__file__).parents[2] / "qat"
    source = "".join(file.read_text() for file in (*root.glob("recipe/*.cpp"), root / "nn/kv_cache.cpp"))
    keys = set(re.findall(r'\.(?:integer|number|boolean|text|one_of|bound|section|words|child|has)\("(\w+)"', source))
    keys |= set(re.findall(r'list\("(\w+)"\)', source))
    missing = {key for key in keys if not re.search(rf"\b{key}\b", text)}
    assert not missing


def test_errors_are_recipe_errors_and_value_errors():
    where = {"file": "r", "line": 1, "column": 10, "key": "version", "least": 1, "greatest": 1, "value": 7}
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.no-whole-number", **where)):
        torchqat.parse_recipe("version: 7\nlayers: [{match: a, weight: float}]\n", "r")
    assert issubclass(torchqat.RecipeError, ValueError)


def test_words_of_initialize_are_those_of_recipes():
    from torchqat._library import Initialize

    settings = Initialize("hadamard+awq")
    assert settings.transforms == ["hadamard", "awq"] and settings.rounding == "clip"
    settings.order = "column"
    assert (settings.order, settings.scale_search, settings.block_training.rounding) == ("column", "mse", "weights")
    with pytest.raises(
        ValueError,
        match=matches("settings.unknown-word", setting="order", known="plain, group or column", value="best"),
    ):
        settings.order = "best"
    with pytest.raises(
        ValueError,
        match=matches("settings.unknown-word", setting="rounding", known="weights or signed", value="nearest"),
    ):
        settings.block_training.rounding = "nearest"


def test_settings_of_initialize_are_checked():
    import copy
    import pickle

    from torchqat._library import Initialize

    assert Initialize("awq+gptq").transforms == ["awq"]
    settings = Initialize("awq+gptq")
    settings.correction, settings.order, settings.block_training.rounding = 0.25, "column", "signed"
    again = pickle.loads(pickle.dumps(copy.deepcopy(settings)))
    assert (again.method, again.correction, again.order) == ("awq+gptq", 0.25, "column")
    assert again.block_training.rounding == "signed"
    with pytest.raises(ValueError, match=matches("settings.method", method="best")):
        Initialize("best")


def test_specs_are_values():
    import copy
    import pickle

    spec = torchqat.QuantSpec(4, grid="full", granularity="group", group_size=32, scale="learned")
    assert pickle.loads(pickle.dumps(spec)) == spec == copy.deepcopy(spec)
    assert spec != torchqat.QuantSpec(4) and len({spec, copy.copy(spec)}) == 1
    assert repr(spec) == "int4 group 32 full, learned scale in bfloat16"
    with pytest.raises(ValueError, match=matches("ops.bits", bits=9)):
        torchqat.QuantSpec(9)
    known = "tensor, channel, token, group, block or head"
    with pytest.raises(
        ValueError, match=matches("settings.unknown-word", setting="granularity", known=known, value="axis")
    ):
        torchqat.QuantSpec(4, granularity="axis")
