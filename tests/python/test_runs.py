"""The folder of a run: no command deletes it unasked, none goes on with another's, one process at a time changes it."""

import json

import pytest
import torchqat
from command import call
from conftest import PTQ, RECIPE
from interrupting import Interrupting
from sentences import matches, said
from torchqat.files import digest_of
from torchqat.runs.flow import run_of

NOTHING = PTQ + "train: {steps: 0}\n"

LONG = RECIPE.replace("train: {steps: 8,", "train: {steps: 200, validate_every: 0, monitor: false,").split("evaluate:")[
    0
]


def test_a_run_that_was_interrupted_is_not_touched_by_the_same_command(begin, tmp_path, arguments, recipe_file, capsys):
    recipe_file.write_text(LONG)
    with pytest.raises(KeyboardInterrupt):
        begin(LONG, Interrupting(151))
    before = digest_of(tmp_path / "run")
    code, _, err = call(capsys, "run", *arguments)
    assert code == 2 and said(err, "runs.at-step", folder=tmp_path / "run", step=150, total=200)
    assert digest_of(tmp_path / "run") == before
    for command in ("train", "ptq"):
        assert call(capsys, command, *arguments)[0] == 2
    assert digest_of(tmp_path / "run") == before


def test_a_run_that_trained_nothing_yet_is_told_by_what_it_has(begin):
    begin(PTQ + "train: {steps: 0}\n")
    with pytest.raises(torchqat.UserError, match=matches("runs.measured", count=1)):
        begin(PTQ + "train: {steps: 0}\n")


def test_without_training_nothing_trains_whatever_the_recipe_says(begin, tmp_path):
    recipe = torchqat.parse_recipe(PTQ + "train: {steps: 8, control: true}\n", "recipe.yaml")
    report = begin(recipe, training=False)
    assert [variant.name for variant in report.variants] == ["int4-gptq"]
    assert recipe.train.steps == 8 and recipe.train.control and not recipe.model.path  # as they were
    assert begin(NOTHING, resume=True).variants == report.variants
    with pytest.raises(torchqat.UserError, match=matches("runs.steps-without-training", steps=3)):
        torchqat.run("int4", training=False, steps=3)


def test_resume_needs_a_run(begin, tmp_path):
    with pytest.raises(torchqat.UserError, match=matches("runs.nothing-to-resume", folder=tmp_path / "run")):
        begin(resume=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(torchqat.UserError, match=matches("runs.resume-and-restart")):
        begin(resume=True, restart=True)


def test_restart_deletes_what_a_run_made_and_nothing_else(begin, tmp_path):
    begin(PTQ + "train: {steps: 0}\nexport: [compressed-tensors, gptq]\n")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    report = begin(PTQ + "train: {steps: 0}\n", restart=True)
    assert [variant.name for variant in report.variants] == ["int4-gptq"]
    assert [path.name for path in (tmp_path / "run" / "exports").iterdir()] == ["compressed-tensors-int4-gptq"]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    begin(PTQ + "train: {steps: 0}\n", restart=True, output=tmp_path / "new")  # where there is nothing, too


def test_a_restart_that_is_killed_leaves_nothing_that_counts(begin, tmp_path, monkeypatch):
    first = begin()
    with monkeypatch.context() as patch:
        patch.setattr("torchqat.runs.folder.remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            begin(restart=True)
    assert not list((tmp_path / "run").glob("report.json"))
    again = begin(resume=True)
    assert [variant.kl for variant in again.variants] == [variant.kl for variant in first.variants]
    assert all((tmp_path / "run" / variant.export).is_dir() for variant in again.variants)
    assert not list((tmp_path / "run").glob(".*old*"))


def test_what_lies_behind_a_link_is_let_go(begin, tmp_path):
    begin()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    begin(restart=True)
    assert not (tmp_path / "run" / "checkpoints").is_symlink() and (tmp_path / "disk" / "train.pt").is_file()


def test_the_folder_is_named_after_model_and_recipe(monkeypatch, tmp_path, recipe_file, model_folder):
    assert str(run_of(recipe_file, str(model_folder)).folder) == "runs/model-recipe"
    assert str(run_of(recipe_file, "org/Model-7B").folder) == "runs/Model-7B-recipe"
    assert str(run_of(recipe_file, "mine:build").folder) == "runs/build-recipe"


def test_torchrun_is_for_training_alone(begin, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(torchqat.UserError, match=matches("runs.one-process-alone", count=2)):
        begin()
    assert not (tmp_path / "run").exists()


def test_reports_are_changed_by_one_at_a_time(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from torchqat.reports.report import read_report
    from torchqat.runs.folder import changed_report

    def note(number):
        with changed_report(tmp_path) as report:
            report.notes.append(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    assert sorted(map(int, read_report(tmp_path).notes)) == list(range(40))


def test_what_another_process_is_writing_is_no_leftover(tmp_path):
    import os

    from torchqat.runs.locking import others_in, remove_leftovers

    (tmp_path / f".out.pending-{os.getppid()}").mkdir()
    (tmp_path / ".out.pending-999999999").mkdir()
    (tmp_path / "poetry.lock").write_text("mine")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f".out.pending-{os.getppid()}", "poetry.lock"}
    assert [path.name for path in others_in(tmp_path)] == ["poetry.lock"]


def test_a_run_of_another_version_is_told_by_it(begin, tmp_path):
    begin(NOTHING)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**settings, "version": 1}))
    with pytest.raises(torchqat.UserError, match=matches("runs.another-version", folder=tmp_path / "run")):
        begin(NOTHING, resume=True)
    with pytest.raises(torchqat.UserError, match=matches("runs.measured", count=1)):
        begin(NOTHING)
    begin(NOTHING, restart=True)
