"""What a run made is there again: without its data, from any directory, solved once, whatever its folder is called."""

import shutil
import sys

import pytest
import torch
import torchqat
from command import call
from conftest import PTQ, RECIPE
from sentences import said
from test_decide import size
from torchqat.runs.progress import Progress
from torchqat.runs.restore import open_run

NOTHING = PTQ + "train: {steps: 0}\n"

STATIC = "    input: {dtype: int8, granularity: tensor, dynamic: false}\n"


@pytest.mark.parametrize(
    "text",
    [
        RECIPE,
        PTQ + "train: {steps: 0}\n",
        RECIPE.replace("schedule:", STATIC + "schedule:") + "export: [safetensors]\n",
    ],
)
def test_export_verify_and_report_do_without_the_data_and_from_anywhere(
    text, tmp_path, model_folder, data_folder, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    code, _, err = call(capsys, "run", "recipe.yaml", "--model", "model", "--data", "data", "--output", "run")
    assert code == 0, err
    shutil.rmtree(data_folder)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for folder in sorted((tmp_path / "run" / "exports").iterdir()):
        code, out, err = call(capsys, "verify", folder)
        assert code == 0 and said(out, "verify.equal"), err
    code, _, err = call(capsys, "export", "../run", "--format", "safetensors", "--output", "again")
    assert code == 0, err
    assert call(capsys, "report", "../run")[0] == 0
    code, out, _ = call(capsys, "verify", "again", "--run", "../run")  # which lies elsewhere
    assert code == 0 and said(out, "verify.equal")


def test_a_checkpoint_is_known_by_what_it_holds(begin, tmp_path, capsys):
    """Not by the name of its folder, which may be another's."""
    begin()
    exports = tmp_path / "run" / "exports"
    shutil.copytree(exports / "compressed-tensors-int8-naive", tmp_path / "run" / "mine-int4-naive")
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive")
    assert code == 0 and said(out, "verify.equal", layers=14)
    (tmp_path / "run" / "mine-int4-naive" / "extra.txt").write_text("changed")
    code, _, err = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive")
    assert code == 2 and said(err, "runs.export-unknown", variants="int4-naive, int4-qat, int8-naive")
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "mine-int4-naive", "--variant", "int8-naive")
    assert code == 0 and said(out, "verify.equal", layers=14)
    code, _, err = call(capsys, "verify", exports / "compressed-tensors", "--variant", "int5")
    assert code == 2 and said(err, "runs.variant-unknown", variant="int5")


def test_a_model_that_changed_since_is_named(begin, tmp_path, model_folder, tiny_llama, capsys):
    begin(PTQ + "train: {steps: 0}\n")
    with torch.no_grad():
        tiny_llama.lm_head.weight.mul_(2)
    tiny_llama.save_pretrained(model_folder)
    code, _, err = call(capsys, "export", tmp_path / "run")
    assert code == 2 and said(err, "runs.model-changed")


def test_what_is_kept_is_of_the_same_settings(begin, tmp_path):
    begin(NOTHING)
    run = open_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    gptq = torchqat._library.Initialize("gptq")
    first = run.prepared(run.plan, gptq, tmp_path / "kept.pt").state_dict()
    gptq.damping, gptq.correction = 50.0, 0.0
    second = run.prepared(run.plan, gptq, tmp_path / "kept.pt").state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_limits_that_changed_are_held_against_what_was_measured(begin):
    assert begin(NOTHING + "evaluate: {accept: {kl: 100}}\n").accepted is True
    assert begin(NOTHING + "evaluate: {accept: {kl: 1.0e-9}}\n", resume=True).accepted is False


def test_functions_of_the_user_are_looked_for_where_the_run_was_begun(begin, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    begin(NOTHING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [])
    open_run(tmp_path / "run")
    assert sys.path == [str(tmp_path / "work")]


# -- mode auto --------------------------------------------------------------------------------------------------------


def test_candidates_are_not_solved_twice(begin, tmp_path, monkeypatch, capsys):
    """Export and verification read what mode auto kept; so does a run that goes on."""
    auto = RECIPE.split("evaluate:")[0].replace("steps: 8", "steps: 4") + "mode: auto\n" + size(6.0)
    report = begin(auto + "evaluate: {accept: {kl: 0.0}}\n")
    assert len(report.variants) == 6
    for function in (
        "torchqat.runs.run.calibrate",
        "torchqat.runs.candidates.fine_tune",
        "torchqat.runs.candidates.measure_sensitivity",
    ):
        monkeypatch.setattr(function, lambda model, batches, *rest: pytest.fail("solved again") if batches else Nothing)
    for variant in report.variants:
        code, out, err = call(capsys, "verify", tmp_path / "run" / variant.export)
        assert code == 0 and said(out, "verify.equal"), err
    begin(auto + "evaluate: {accept: {kl: 0.0}}\n", resume=True)


class Nothing:
    warnings: list = []


def test_candidates_train_as_settings_made_in_python_say(tmp_path, model_folder, data_folder, monkeypatch):
    from torchqat.runs import candidates

    seen = []
    monkeypatch.setattr(
        candidates, "fine_tune", lambda run: seen.append(run.recipe.distill.temperature) or pytest.skip()
    )
    text = RECIPE.split("evaluate:")[0] + "mode: auto\nevaluate: {accept: {kl: 0.0}}\n" + size(5.2)
    recipe = torchqat.parse_recipe(text, "recipe.yaml")
    recipe.distill.temperature = 3.0
    with pytest.raises(pytest.skip.Exception):
        torchqat.run(recipe, model_folder, data_folder, tmp_path / "run", progress=Progress(quiet=True))
    assert seen == [3.0]


def test_candidates_of_other_limits_stay_what_they_were(begin, tmp_path, capsys):
    auto = RECIPE.split("evaluate:")[0].split("train:")[0] + "train: {steps: 0}\nmode: auto\n"
    limits = "evaluate: {accept: {kl: 0.0}}\n"
    first = begin(auto + limits + size(6.0))
    begin(auto + limits + size(6.5), resume=True)
    for variant in first.variants:
        code, out, err = call(capsys, "verify", tmp_path / "run" / variant.export)
        assert code == 0 and said(out, "verify.equal"), err
