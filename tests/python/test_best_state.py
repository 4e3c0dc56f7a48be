"""Training never ends worse than it began, and post-training quantization as a run of its own."""

import json
import re

import pytest
import torch
import torchqat
from sentences import matches
from torchqat.runs.fine_tune import is_checked
from torchqat.runs.progress import Progress
from torchqat.runs.restore import exported_model, open_run, trained_model
from torchqat.runs.run import Run
from torchqat.training.best_state import BestState

RECIPE = """version: 1
model: {{path: {model}}}
data: {{train: {data}, calibration: {{samples: 8, sequence_length: 32}}, evaluation: {{samples: 8, sequence_length: 32}}}}
layers:
  - match: "model.layers.*"
    weight: {{dtype: int3, group_size: 32, grid: full}}
initialize: {{method: gptq}}
train: {{steps: {steps}, batch_size: 4, sequence_length: 32, learning_rate: {rate}, validate_every: 2, checkpoint_every: 3}}
evaluate: {{compare: [int3]}}
"""


@pytest.fixture
def recipe_of(model_folder, data_folder):
    def make(rate="1.0e-4", steps=6):
        text = RECIPE.format(model=model_folder, data=data_folder, rate=rate, steps=steps)
        return torchqat.parse_recipe(text, "recipe")

    return make


def test_training_that_makes_it_worse_is_undone_and_said(recipe_of, tmp_path):
    report = torchqat.run(recipe_of(rate="0.5"), output=tmp_path / "run", progress=Progress(quiet=True))
    started, ended = report.variant("int3-gptq"), report.variant("int3-qat")
    assert ended.kl == started.kl
    assert report.validation["best"] == report.validation["start"] and report.validation["step"] == 0
    assert [note for note in report.notes if re.match(matches("runs.training-did-not-help"), note)]
    first, last = (
        exported_model(tmp_path / "run/exports/compressed-tensors-int3-gptq")[1],
        trained_model(open_run(tmp_path / "run")),
    )
    for (name, a), (_, b) in zip(first.named_parameters(), last.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_best_state_is_the_one_that_is_exported(recipe_of, tmp_path):
    report = torchqat.run(recipe_of(rate="2.0e-3", steps=9), output=tmp_path / "run", progress=Progress(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["validation_kl"] for line in lines if "validation_kl" in line}
    assert list(measured) == [2, 4, 6, 8, 9]
    measured[0] = report.validation["start"]
    assert report.validation["best"] == min(measured.values())
    assert report.validation["step"] == min(measured, key=measured.get)
    opened = open_run(tmp_path / "run")
    kl = torchqat.evaluate(trained_model(opened), opened.data.validation, opened.original).kl
    assert kl == report.validation["best"]


def test_an_interrupted_run_keeps_the_same_best_state(recipe_of, tmp_path, monkeypatch):
    whole = torchqat.run(recipe_of(rate="2.0e-3"), output=tmp_path / "whole", progress=Progress(quiet=True))
    consider = BestState.consider

    def interrupted(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return consider(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BestState, "consider", interrupted)
        torchqat.run(recipe_of(rate="2.0e-3"), output=tmp_path / "cut", progress=Progress(quiet=True))
    resumed = torchqat.run(
        recipe_of(rate="2.0e-3"), output=tmp_path / "cut", progress=Progress(quiet=True), resume=True
    )
    assert resumed.validation == whole.validation
    assert resumed.variant("int3-qat").kl == whole.variant("int3-qat").kl


def test_a_last_validation_that_is_interrupted_is_made_again(recipe_of, tmp_path, monkeypatch):
    quiet = {"progress": Progress(quiet=True)}
    whole = torchqat.run(recipe_of(rate="2.0e-3"), output=tmp_path / "whole", **quiet)
    last, consider = recipe_of().train.steps, BestState.consider

    def interrupted(self, step):
        if step == last:
            raise KeyboardInterrupt
        return consider(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BestState, "consider", interrupted)
        torchqat.run(recipe_of(rate="2.0e-3"), output=tmp_path / "cut", **quiet)
    resumed = torchqat.run(recipe_of(rate="2.0e-3"), output=tmp_path / "cut", resume=True, **quiet)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert "validation_kl" in json.loads(lines[-1]) and json.loads(lines[-1])["step"] == last
    assert resumed.validation == whole.validation


def test_states_at_other_widths_are_not_considered(recipe_of, tmp_path):
    recipe = recipe_of()
    text = recipe.text + "schedule:\n  - {until: 3, weight: int8}\n  - {until: 100%}\n"
    run = Run(torchqat.parse_recipe(text, "recipe"), tmp_path, Progress(quiet=True))
    assert [step for step in range(1, 7) if is_checked(run, step)] == [4, 6]


def test_validation_lies_between_what_is_reported(recipe_of, tmp_path):
    data = Run(recipe_of(), tmp_path, Progress(quiet=True)).data
    reported = {tuple(row.tolist()) for batch in data.evaluation for row in batch}
    assert data.validation and not any(tuple(r.tolist()) in reported for b in data.validation for r in b)


def test_ptq_is_a_run_without_training(recipe_of, tmp_path, model_folder, data_folder, capsys):
    from torchqat.cli import main

    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_of().text)
    with pytest.raises(SystemExit) as ended:
        main(["ptq", str(path), "--output", str(tmp_path / "run")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "INT3 gptq" in printed and "QAT" not in printed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [v["name"] for v in report["variants"]] == ["int3-naive", "int3-gptq"]
    naive, found = report["variants"]
    assert found["kl"] < naive["kl"]
    folder = tmp_path / "run" / "exports" / "compressed-tensors-int3-gptq"
    assert torchqat.verify(folder, exported_model(folder)[1]).ok


def test_calibration_is_kept(recipe_of, tmp_path, monkeypatch):
    torchqat.run(recipe_of(steps=0), output=tmp_path / "run", progress=Progress(quiet=True))
    monkeypatch.setattr("torchqat.runs.run.calibrate", lambda *_: pytest.fail("calibrated twice"))
    again = Run(recipe_of(steps=0), tmp_path / "run", Progress(quiet=True))
    again.prepared(again.plan)
