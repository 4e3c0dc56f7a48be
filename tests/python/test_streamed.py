"""Runs that never hold their model: runs like others, verified by what was rounded."""

import json

import gguf
import pytest
import torch
from command import call
from conftest import PTQ
from sentences import said, sentence


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
    assert code == 2 and said(err, "runs.measured", count=1)
    export = run / "exports" / "compressed-tensors"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and said(out, "verify.equal", layers=14)
    code, _, err = call(capsys, "verify", export, "--engine", "transformers")
    assert code == 2 and said(err, "runs.streamed-in-no-engine", folder=run)
    code, out, _ = call(capsys, "ptq", *arguments, "--stream", "--restart")
    assert code == 0


def test_what_a_streamed_run_leaves_out_is_said(arguments, recipe_file, tmp_path, capsys):
    """Formats after the first, limits and an engine: nothing of them happens, so nobody may take them for met."""
    recipe_file.write_text(PTQ + "export: [compressed-tensors, gptq, gguf]\nevaluate: {accept: {kl: 0.05}}\n")
    code, out, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    assert said(err, "stream.first-export", format="compressed-tensors", others="gptq and gguf")
    assert said(err, "stream.limits")
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    assert sentence("stream.limits") in notes
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--restart", "--set", "mode=auto")
    assert code == 2 and said(err, "stream.no-decision")
    assert (tmp_path / "run" / "exports").exists()  # what was there stays


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
    layer = name.rpartition(".")[0]
    assert code == 1 and said(out, "verify.one-differing", count=1, name=layer)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    code, out, _ = call(capsys, "verify", export)
    assert code == 1 and said(out, "verify.one-missing", count=1, name=f"{layer}.weight")


@pytest.mark.parametrize("key, value", [("rms_norm_eps", 0.5), ("num_hidden_layers", 1), ("rope_parameters", {})])
def test_a_changed_configuration_of_a_streamed_checkpoint_is_found(
    key, value, arguments, recipe_file, tmp_path, capsys
):
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    export = tmp_path / "run" / "exports" / "compressed-tensors"
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config))  # its bytes do not matter
    assert call(capsys, "verify", export)[0] == 0
    (export / "config.json").write_text(json.dumps({**config, key: value}))
    code, out, _ = call(capsys, "verify", export)
    assert code == 1 and said(out, "verify.settings", count=1, verb="differs", key=key)


def test_a_streamed_gguf_is_a_run_and_damage_is_found(arguments, recipe_file, tmp_path, capsys):
    weight = "{dtype: int4, group_size: 32, grid: full, scale: learned}"
    assert weight in PTQ
    recipe_file.write_text(PTQ.replace(weight, "{dtype: q4_0}") + "export: [gguf]\n")
    code, _, err = call(capsys, "ptq", *arguments, "--stream")
    assert code == 0, err
    export = tmp_path / "run" / "exports" / "gguf"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and said(out, "verify.equal", layers=14)
    for name, layer in (("blk.1.ffn_up.weight", "mlp.up_proj"), ("blk.1.attn_norm.weight", "input_layernorm")):
        data = next(t for t in gguf.GGUFReader(export / "model.gguf", "r+").tensors if t.name == name).data
        data.view("uint8").reshape(-1)[3] ^= 1
        code, out, _ = call(capsys, "verify", export)
        assert code == 1 and said(out, "verify.one-differing", count=1, name=f"model.layers.1.{layer}")
        data.view("uint8").reshape(-1)[3] ^= 1


def test_streamed_and_whole_runs_do_not_mix(begin, arguments, recipe_file, tmp_path, capsys):
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--resume")
    assert code == 2 and said(err, "runs.made-of-others", what=sentence("runs.streamed-or-not"))
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "gptq")
    assert code == 2 and said(err, "runs.streamed-has-no-model", folder=tmp_path / "run")
    assert call(capsys, "ptq", *arguments, "--restart")[0] == 0
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--resume")
    assert code == 2 and said(err, "runs.made-of-others", what=sentence("runs.streamed-or-not"))


@pytest.mark.parametrize("rest", ["export: [mlx]\n", "initialize: {method: hadamard+gptq}\n"])
def test_what_cannot_be_streamed_is_said_before_there_is_a_run(
    rest, arguments, recipe_file, tmp_path, capsys, monkeypatch
):
    recipe_file.write_text(PTQ.replace("initialize: {method: gptq}\n", "") + rest)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe_file.write_text(PTQ)
    assert call(capsys, "ptq", *arguments, "--stream")[0] == 2
