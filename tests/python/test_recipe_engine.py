"""The engine that a recipe names: what it would not run is refused before training, and the export is measured in it."""

import json

import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from test_decide import AUTO, candidates_of
from torchqat.verification.engines import ENGINES

WITH_INPUTS = ("scale: learned}", "scale: learned}\n    input: {dtype: int8, symmetric: false}")


def recipe_of(engine):
    return RECIPE + f"engine: {engine}\n"


@pytest.fixture
def command(tmp_path, model_folder, data_folder, capsys):
    def run(text, name="run", *options):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        places = ["--model", model_folder]
        if name != "check":
            places += ["--data", data_folder, "--output", tmp_path / "run"]
        return call(capsys, name, path, *places, *options)

    return run


@pytest.mark.parametrize("name", ["check", "run", "train", "ptq"])
def test_what_the_engine_would_not_compute_is_refused_before_anything_is_written(name, command, tmp_path):
    code, _, err = command(recipe_of("executorch"), name)
    why = sentence(
        "engine.because-executorch-inputs", name="model.layers.0.self_attn.q_proj", found="in floating point"
    )
    assert code == 2 and said(err, "engine.cannot-run", engine="executorch", why=why), err
    assert not (tmp_path / "run").exists()


def test_the_engine_chooses_the_format():
    for name, engine in ENGINES.items():
        text = RECIPE + f"engine: {name}\n"
        assert torchqat.parse_recipe(text).exports[0] in engine.formats, name
        if name == "transformers":  # which says of what it does not load that it does not
            continue
        known = " or ".join(filter(None, (", ".join(engine.formats[:-1]), engine.formats[-1])))
        refusal = matches("recipe.engine-format", formats=known, engine=name)
        with pytest.raises(torchqat.RecipeError, match=refusal):
            torchqat.parse_recipe(text + "export: [modelopt]\n")


def test_the_export_of_a_recipe_is_measured_in_its_engine(command, tmp_path):
    code, out, err = command(recipe_of("transformers"))
    assert code == 0, err
    report = tmp_path / "run" / "report.json"
    first = json.loads(report.read_text())["engine"]
    assert first["name"] == "transformers" and first["ok"] and first["export"]["decode"] > 0
    assert "In transformers" in (tmp_path / "run" / "report.html").read_text()
    assert command(recipe_of("transformers"), "run", "--resume")[0] == 0
    assert json.loads(report.read_text())["engine"] == first  # it is not asked twice


def test_another_engine_is_asked_when_a_run_goes_on(command, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHQAT_VLLM", raising=False)
    report = tmp_path / "run" / "report.json"
    assert command(recipe_of("vllm"), "ptq")[0] == 0
    assert said(json.loads(report.read_text())["engine"]["note"], "verify.engine-missing", engine="vllm", module="vllm")
    assert command(recipe_of("transformers"), "ptq", "--resume")[0] == 0
    assert json.loads(report.read_text())["engine"]["ok"]


def test_mode_auto_tries_what_the_engine_runs(model_folder):
    text = AUTO.replace(*WITH_INPUTS)
    tried = [candidate.name for candidate in candidates_of(text + "engine: executorch\n", model_folder).all()]
    assert tried == ["int4-gptq", "int4-awq", "int4-qat"]  # its kernel has no other width
    assert "int8" in [candidate.name for candidate in candidates_of(text, model_folder).all()]
