"""Recipes as Python sees them; the reader itself is tested in C++."""

import re
from pathlib import Path

import pytest
import torchqat
from sentences import matches
from torchqat._library import recipe_keys
from torchqat.recipes.shipped import shipped

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid_and_fit_a_language_model(name):
    from torchqat.runs.scratch import new_model

    recipe = torchqat.load_recipe(name)
    if recipe.model.kind != "causal_lm":
        return  # tests/python/test_recipes_run.py gives it a model
    settings = torchqat.load_recipe("quickstart").model.scratch
    plan = torchqat.make_plan(new_model(settings, settings.vocabulary, 0), recipe)
    assert len(plan.layers) == 7 * settings.layers
    reasons = {weight.why for weight in plan.left}
    stages = len(plan.stages) if len(plan.stages) > 1 else 0  # one stage is no schedule, and has no line
    lines = len(plan.layers) + 2 + len(reasons) + stages + (plan.kv_cache is not None)
    assert str(plan).count("\n") == lines


def test_only_the_quickstart_has_a_model_of_its_own():
    recipes = {name: torchqat.load_recipe(name) for name in shipped()}
    own = {n for n, r in recipes.items() if r.model.path or r.model.scratch or r.data.train or r.data.sources}
    assert own == {"quickstart"}


def test_the_quickstart_comments_every_key():
    text = (ROOT / "recipes" / "quickstart.yaml").read_text()
    keys = {part for key in recipe_keys() for part in key.path.split(".")}
    assert {key for key in keys if not re.search(rf"\b{key}\b", text)} == set()


def test_errors_are_recipe_errors_and_value_errors():
    where = {"file": "r", "line": 1, "column": 10, "key": "version", "least": 1, "greatest": 1, "value": 7}
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.no-whole-number", **where)):
        torchqat.parse_recipe("version: 7\nlayers: [{match: a, weight: float}]\n", "r")
    assert issubclass(torchqat.RecipeError, ValueError)


_LEARNS = "a weight or an input has scale: learned"
_FOLLOWS = (
    "an input's calibrated range follows the data, which takes granularity tensor and observer minmax or moving_average"
)


@pytest.mark.parametrize(
    "text, key, unless, value",
    [
        ("initialize: {method: mse, damping: 0.1}", "initialize.damping", "unless method rounds by gptq", 0.1),
        (
            "initialize: {block_training: {steps: 5, scale_learning_rate: 0.1}}",
            "initialize.block_training.scale_learning_rate",
            "unless a weight has scale: learned",
            0.1,
        ),
        ("distill: {loss: cross_entropy, temperature: 2}", "distill.temperature", "unless loss is forward_kl", 2),
        (
            "distill: {loss: cross_entropy, weight: 0.5}",
            "distill.weight",
            "where loss is cross_entropy, which is all of it",
            0.5,
        ),
        ("train: {oscillation: {threshold: 0.1}}", "train.oscillation.threshold", "unless method is freeze", 0.1),
        (
            "train: {oscillation: {method: freeze, dampening: 0.1}}",
            "train.oscillation.dampening",
            "unless method is dampen",
            0.1,
        ),
        ("train: {scale_learning_rate: 0.1}", "train.scale_learning_rate", f"unless {_LEARNS}", 0.1),
        ("train: {freeze_observers: 10%}", "train.freeze_observers", f"unless {_FOLLOWS}", "10%"),
    ],
)
def test_what_would_have_no_effect_is_refused(text, key, unless, value):
    rule = "version: 1\nlayers: [{match: a, weight: {dtype: int4}}]\n"
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.left-out", key=key, unless=unless, value=value)):
        torchqat.parse_recipe(rule + text + "\n", "r")


def test_block_training_moves_the_learned_scales_of_weights_alone():
    blocks = "initialize: {block_training: {steps: 5, scale_learning_rate: %s}}\n"
    rule = "version: 1\nlayers: [{match: a, weight: {dtype: int4%s}, input: {dtype: int8, granularity: tensor%s}}]\n"
    taken = torchqat.parse_recipe(rule % (", scale: learned", "") + blocks % 0.1, "r")
    assert taken.initialize.block_training.scale_learning_rate == 0.1
    torchqat.parse_recipe(rule % ("", "") + blocks % 1.0e-3, "r")  # its default
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.left-out", value=0.1)):
        torchqat.parse_recipe(rule % ("", ", scale: learned") + blocks % 0.1, "r")


@pytest.mark.parametrize(
    "weight, input, train, refused",
    [
        ("{dtype: int4, scale: learned}", "{dtype: int8}", "scale_learning_rate: 0.1", ""),
        ("{dtype: int4}", "{dtype: int8, granularity: tensor, scale: learned}", "scale_learning_rate: 0.1", ""),
        ("{mix: q4_k_m, scale: learned}", "float", "scale_learning_rate: 0.1", ""),
        ("{dtype: int4}", "float", "scale_learning_rate: 3.0e-4, freeze_observers: 80%, weight_decay: 0.1", ""),
        ("{dtype: int4}", "{dtype: int8, granularity: tensor}", "freeze_observers: 5", ""),
        ("{dtype: int4}", "{dtype: int8, granularity: tensor, observer: moving_average}", "freeze_observers: 5", ""),
        (
            "{dtype: int4}",
            "{dtype: int8, granularity: tensor, observer: mse}",
            "freeze_observers: 5",
            "freeze_observers",
        ),
        (
            "{dtype: int4}",
            "{dtype: int8, granularity: tensor, scale: learned}",
            "freeze_observers: 5",
            "freeze_observers",
        ),
        ("{dtype: int4}", "{dtype: int8}", "freeze_observers: 5", "freeze_observers"),
        ("{dtype: int4, scale: learned}", "float", "parameters: scales, weight_decay: 0.1", "weight_decay"),
        ("{dtype: int4, scale: learned}", "float", "parameters: scales, learning_rate: 0.1", "learning_rate"),
        ("{dtype: int4, scale: learned}", "float", "parameters: scales, optimizer: sgd, learning_rate: 0.1", ""),
        (
            "{dtype: int4, scale: learned}",
            "float",
            "parameters: scales, relative_learning_rate: 0.1",
            "relative_learning_rate",
        ),
        ("{dtype: int4, scale: learned}", "float", "parameters: lora, weight_decay: 0.1", ""),
    ],
)
def test_settings_of_training_are_those_that_something_reads(weight, input, train, refused):
    text = f'version: 1\nlayers: [{{match: "*", weight: {weight}, input: {input}}}]\ntrain: {{{train}}}\n'
    if not refused:
        torchqat.parse_recipe(text)
        return
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.left-out", key=f"train.{refused}")):
        torchqat.parse_recipe(text)


@pytest.mark.parametrize("optimizer", ["muon", "adamw_8bit"])
def test_an_optimizer_of_matrices_is_refused_where_scales_alone_train(optimizer):
    text = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, scale: learned}}]\n'
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.optimizer-of-matrices", optimizer=optimizer)):
        torchqat.parse_recipe(f"{text}train: {{parameters: scales, optimizer: {optimizer}}}\n")


def test_a_recipe_exports_something():
    with pytest.raises(torchqat.RecipeError, match=matches("recipe.no-format")):
        torchqat.parse_recipe("version: 1\nlayers: [{match: a, weight: {dtype: int4}}]\nexport: []\n", "r")


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
