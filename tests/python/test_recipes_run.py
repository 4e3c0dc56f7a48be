"""Each recipe that ships, run to its end on a small model: what users copy must work as it stands."""

from pathlib import Path

import pytest
import torchqat
from torchqat.flow import run
from torchqat.progress import Progress
from torchqat.scratch import new_model

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


class Small:
    """Wide enough for groups of 128."""

    hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 128, 256, 2, 4, 2, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("small") / "model"
    new_model(Small, 400, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs(path, folder, data_folder, tmp_path):
    recipe = torchqat.load_recipe(str(path))
    recipe.model.path, recipe.model.scratch, recipe.data.train = str(folder), None, str(data_folder)
    recipe.train.steps = min(4, recipe.train.steps)
    recipe.train.batch_size, recipe.train.sequence_length, recipe.train.validate_every = 2, 32, 2
    for samples in (recipe.data.calibration, recipe.data.evaluation):
        samples.samples, samples.sequence_length = 4, 32
    report = run(recipe, tmp_path / "run", Progress())
    assert report.variants and all(variant.kl >= 0 for variant in report.variants)
    exported = sorted(folder.name for folder in (tmp_path / "run" / "exports").iterdir())
    for format in recipe.exports:
        assert any(name == format or name.startswith(f"{format}-") for name in exported)
    if recipe.mode == "auto":
        assert report.chosen and report.decision
