"""Every key of recipes: that something reads it, that the page and the schema have it, and what the schema lets through."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torchqat
import yaml
from conftest import PTQ, RECIPE
from torchqat._library import recipe_keys
from torchqat.recipes.schema import schema
from torchqat.recipes.shipped import shipped
from torchqat.runs.sources import KEYS

ROOT = Path(__file__).parents[2]
# By section, what Python calls it where it reads it.
HOLDERS = {
    "": ("recipe", "_recipe"),
    "data": ("data", "settings"),
    "data.calibration": ("calibration", "asked"),
    "data.evaluation": ("evaluation",),
    "data.train": ("source",),
    "distill": ("distill", "settings"),
    "evaluate": ("evaluate",),
    "model": ("model",),
    "model.scratch": ("scratch", "settings"),
    "size": ("recipe",),
    "train": ("train", "settings", "self"),
    "train.lora": ("settings",),
    "train.oscillation": ("oscillation", "settings"),
}
# Fields that are not called as their keys.
FIELDS = {
    "data.evaluation.path": ("data", "evaluation_path"),
    "size.bits_per_weight": ("recipe", "size_bits_per_weight"),
    "export": ("recipe", "exports"),
    **{
        f"evaluate.accept.{key}": ("asked", f"accept_{key}")
        for key in ("kl", "task_drop", "perplexity_ratio", "cosine")
    },
}
# Read in C++, where layers, schedules and solvers are.
NATIVE = ("version", "layers", "kv_cache", "schedule", "initialize")


def leaves():
    return [key for key in recipe_keys() if not {"map", "maps"} & set(key.types) or "text" in key.types]


def read_in_python():
    """Attributes that the package reads, each as the last name of what has it, and its own."""
    found = set()
    for file in (ROOT / "python" / "torchqat").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add((ast.unparse(node.value).rpartition(".")[2], node.attr))
    return found


def test_something_reads_each_key():
    read, dead = read_in_python() | {("source", name) for name in KEYS}, []
    for key in leaves():
        section, _, leaf = key.path.rpartition(".")
        if section.split(".")[0] in NATIVE or leaf in NATIVE or key.path == "train.freeze_observers":
            continue
        wanted = [FIELDS[key.path]] if key.path in FIELDS else [(holder, leaf) for holder in HOLDERS[section]]
        if not read & set(wanted):
            dead.append(key.path)
    assert not dead


def test_something_reads_each_key_of_the_native_part():
    """Outside of its reader: layers, schedule and solvers, and what Python asks of them."""
    fields = {"dtype": "bits", "symmetric": "grid", "scale": "range", "scale_dtype": "code", "method": "transforms"}
    fields |= {"keys": "key", "values": "value"}
    readers = ("initialize", "kv_cache_spec", "run_recipe", "keys", "meanings", "settings")
    files = [f for name in ("nn", "solvers", "checkpoint", "recipe") for f in (ROOT / "qat" / name).rglob("*.cpp")]
    files = [file for file in files if not file.stem.endswith(("_reader", "_section")) and file.stem not in readers]
    native, python = "".join(file.read_text() for file in files), {field for _, field in read_in_python()}
    dead = []
    for key in leaves():
        top, leaf = key.path.split(".")[0], key.path.rpartition(".")[2]
        field = fields.get(leaf, leaf)
        if key.path.startswith(("layers.weight.outer_scale.", "layers.input.outer_scale.")):
            field = {"dtype": "outer_dtype", "group_size": "outer_block"}[leaf]
        if (top not in NATIVE or top == "version") and key.path != "train.freeze_observers":
            continue
        if field not in python and not re.search(rf"(\.|->){field}\b", native):
            dead.append(key.path)
    assert not dead


def test_page_and_schema_are_up_to_date(tmp_path):
    names = ("recipe.md", "recipe.schema.json")
    command = [sys.executable, ROOT / "tools" / "recipe_page.py", *(tmp_path / name for name in names)]
    subprocess.run(command, check=True)
    for name in names:
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), "run tools/recipe_page.py"
    page = (ROOT / "docs" / "recipe.md").read_text()
    assert all(f"| `{key.path}` |" in page for key in recipe_keys())


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def problems(validator, text):
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


def ours():
    """Recipes of the tree, by what they are called."""
    found = {name: file.read_text() for name, file in shipped().items()} | {"tests": RECIPE, "tests, ptq": PTQ}
    files = [*(ROOT / "tests" / "vectors").rglob("recipe.yaml"), *(ROOT / "examples").rglob("recipe.yaml")]
    return found | {f"{file.parent.parent.name}/{file.parent.name}": file.read_text() for file in files}


@pytest.mark.parametrize("name", ours())
def test_the_schema_lets_good_recipes_through(validator, name):
    assert problems(validator, ours()[name]) == []


GOOD = [
    "layers: {weight: float}",
    "layers: [{match: a, weight: {dtype: int4, block: [8, 8]}}]\ntrain: {warmup: 12, steps: 0}",
    "layers: {weight: {dtype: nvfp4}}\ndata: {train: [{path: a, weight: 2.5}], evaluation: }",
    "layers: {input: {dtype: int8, granularity: tensor, observer: entropy}}\ndata: {train: {path: org/name, subset: x}}",
]
WRONG = [
    "",
    "layers: []\ntrian: {}",
    "layers: {weight: {dtype: int9}}",
    "layers: {weight: int4}",
    "layers: [{weight: float}]",  # in a list, a rule says what it matches
    "layers: {weight: {group_size: 32}}",
    "layers: {weight: {dtype: int4, block: [8]}}",
    "layers: {weight: {dtype: int4, group_size: 0}}",
    "layers: {weight: float}\ntrain: {steps: many}",
    "layers: {weight: float}\ntrain: {steps: -1}",
    "layers: {weight: float}\ntrain: {compile: maybe}",
    "layers: {weight: float}\ntrain: {warmup: 120%}",
    "layers: {weight: float}\ntrain: {learning_rate: 2.0}",
    "layers: {weight: float}\ndata: {train: [{subset: x}]}",
    "layers: {weight: float}\nexport: gguf",
    "layers: {weight: float}\nexport: [ggfu]",
    "layers: {weight: float}\nevaluate: {metrics: [kl]}",
    "layers: {weight: float}\ndistill: {teachers: original}",
    "layers: {weight: float}\nmodel: {scratch: {heads: 0}}",
]


@pytest.mark.parametrize("text", GOOD)
def test_reader_and_schema_agree_on_what_is_right(validator, text):
    torchqat.parse_recipe(f"version: 1\n{text}\n")
    assert problems(validator, f"version: 1\n{text}\n") == []


@pytest.mark.parametrize("text", WRONG)
def test_reader_and_schema_agree_on_what_is_wrong(validator, text):
    with pytest.raises(torchqat.RecipeError):
        torchqat.parse_recipe(f"version: 1\n{text}\n")
    assert problems(validator, f"version: 1\n{text}\n")
