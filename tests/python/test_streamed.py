"""Runs that never hold their model: runs like others, verified by what was rounded."""

import json

import pytest
import torch
from command import call
from conftest import PTQ


def test_a_streamed_run_is_a_run(arguments, recipe_file, tmp_path, capsys, monkeypatch):
    recipe_file.write_text(PTQ)
    code, out, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    run = tmp_path / "run"
    assert {"run.json", "report.json", "recipe.yaml", "plan.txt"} <= {path.name for path in run.iterdir()}
    report = json.loads((run / "report.json").read_text())
    variant = report["variants"][0]
    assert (variant["name"], variant["kl"], variant["export"]) == ("int4-gptq", None, "exports/compressed-tensors")
    assert variant["bits_per_weight"] == pytest.approx(5.0) and report["baseline"]["bytes"] > variant["bytes"]
    code, out, _ = call(capsys, "report", run)
    assert code == 0 and "INT4 gptq, streamed" in out
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 2 and "has a run that has measured 1 variant" in err
    export = run / "exports" / "compressed-tensors"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and "14 layers equal bit for bit" in out
    code, _, err = call(capsys, "verify", export, "--engine", "transformers")
    assert code == 2 and "was streamed, so that its checkpoint can be read, but not compared in engines" in err
    code, out, _ = call(capsys, "ptq", *arguments, "--stream", "--restart")
    assert code == 0


@pytest.mark.parametrize("leaf", ["self_attn.q_proj.weight_packed", "input_layernorm.weight"])
def test_damage_to_a_streamed_checkpoint_is_found(leaf, arguments, recipe_file, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    export = tmp_path / "run" / "exports" / "compressed-tensors"
    name = f"model.layers.1.{leaf}"
    file = next(file for file in export.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    tensors[name].view(torch.uint8).flatten()[3] ^= 1
    save_file(tensors, file, {"format": "pt"})
    code, out, _ = call(capsys, "verify", export)
    assert code == 1 and "1 tensor differs, the first model.layers.1." in out
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    code, out, err = call(capsys, "verify", export)
    assert code != 0 and ("missing" in out or "must be" in err)


def test_streamed_and_whole_runs_do_not_mix(begin, arguments, recipe_file, tmp_path, capsys):
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--resume")
    assert code == 2 and "one of them is streamed" in err
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "gptq")
    assert code == 2 and "was streamed and kept no model" in err
    assert call(capsys, "ptq", *arguments, "--restart")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--resume")
    assert code == 2 and "one of them is streamed" in err


@pytest.mark.parametrize("rest", ["export: [gguf]\n", "initialize: {method: hadamard+gptq}\n"])
def test_what_cannot_be_streamed_is_said_before_there_is_a_run(
    rest, arguments, recipe_file, tmp_path, capsys, monkeypatch
):
    recipe_file.write_text(PTQ.replace("initialize: {method: gptq}\n", "") + rest)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2
