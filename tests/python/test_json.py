"""--json: one object on stdout, whatever the command; sentences stay for people."""

import json

import pytest
from command import call
from sentences import said


def read(capsys, *arguments):
    code, out, err = call(capsys, *arguments)
    return code, json.loads(out), err


def test_a_run_and_what_comes_after_it(arguments, tmp_path, capsys, model_folder, held_out_folder):
    code, found, err = read(capsys, "run", *arguments, "--json")
    assert code == 0, err
    assert [variant["name"] for variant in found["variants"]] == ["int8-naive", "int4-naive", "int4-qat"]
    run = tmp_path / "run"
    _, shown, _ = read(capsys, "report", run, "--json")
    assert shown[str(run)]["variants"] == found["variants"]
    code, checked, _ = read(capsys, "--json", "verify", run / "exports" / "compressed-tensors")
    assert code == 0 and checked["ok"] and checked["layers"] == 14 and checked["agreement"]["kl"] < 1e-6
    code, exported, _ = read(capsys, "export", run, "--format", "gptq", "--output", tmp_path / "out", "--json")
    assert code == 0 and exported["ok"]
    options = ["--data", held_out_folder, "--reference", model_folder, "--samples", 4, "--sequence-length", 32]
    _, figures, _ = read(capsys, "evaluate", run / "exports" / "compressed-tensors", *options, "--json")
    assert figures["kl"] == pytest.approx(found["variants"][2]["kl"], rel=1e-4)


def test_a_task_at_the_command_line(model_folder, data_folder, tmp_path, capsys):
    task = tmp_path / "task.jsonl"
    lines = [
        {"prompt": f"def function_{i}(argument):", "choices": ["\n    '''", " = 3"], "answer": i % 2} for i in range(12)
    ]
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--data", data_folder, "--samples", 2, "--sequence-length", 16, "--task", task]
    code, found, err = read(capsys, "evaluate", model_folder, *options, "--reference", model_folder, "--json")
    assert code == 0, err
    assert found["examples"] == 12 and found["task_change"] == [0.0, 0.0, 0.0] and found["flip_rate"] == 0
    code, out, _ = call(capsys, "evaluate", model_folder, *options, "--reference", model_folder)
    assert (
        code == 0
        and said(out, "evaluate.score", count=12)
        and said(out, "evaluate.within-noise")
        and said(out, "evaluate.change", share="0.00%")
    )


def test_a_task_that_cannot_be_read_is_told_before_anything_is_measured(model_folder, data_folder, tmp_path, capsys):
    options = ["--data", data_folder, "--task", tmp_path / "absent.jsonl"]
    code, out, err = call(capsys, "evaluate", model_folder, *options)
    assert code == 2 and not out and "perplexity" not in err and "absent.jsonl" in err


def test_other_commands(recipe_file, model_folder, data_folder, capsys):
    code, found, _ = read(capsys, "check", recipe_file, "--model", model_folder, "--json")
    assert code == 0 and found["valid"] and len(found["layers"]) == 14
    assert read(capsys, "doctor", "--json")[1]["torch"]
    options = ["--model", model_folder, "--data", data_folder, "--bits", "4"]
    code, found, err = read(capsys, "sensitivity", recipe_file, *options, "--json")
    assert code == 0 and found["model.layers.0.mlp.up_proj"]["kl"]["4"] > 0, err


def test_errors_are_objects_too(tmp_path, capsys):
    code, found, err = read(capsys, "check", tmp_path / "missing.yaml", "--json")
    assert code == 2 and found["exit_code"] == 2 and "missing.yaml" in found["error"] and "missing.yaml" in err
    code, out, _ = call(capsys, "check", tmp_path / "missing.yaml")
    assert code == 2 and out == ""
