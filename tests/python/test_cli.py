"""The command line as a user meets it: whole runs of a tiny model, and each bad input with its sentence."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence
from torchqat.files import load_state


def test_run_export_verify_evaluate(arguments, tmp_path, capsys, model_folder, held_out_folder):
    code, out, err = call(capsys, "run", *arguments)
    assert code == 0, err
    run = tmp_path / "run"
    report = json.loads((run / "report.json").read_text())
    assert set(report["baseline"]) >= {"perplexity", "bytes"}
    names = [variant["name"] for variant in report["variants"]]
    assert names == ["int8-naive", "int4-naive", "int4-qat"]
    for variant in report["variants"]:
        assert set(variant) >= {
            "name",
            "method",
            "bits_per_weight",
            "perplexity",
            "kl",
            "top1_agreement",
            "bytes",
            "export",
        }
        assert variant["bytes"] == (run / variant["export"] / "model.safetensors").stat().st_size
        assert variant["bytes"] < report["baseline"]["bytes"]
        assert len(variant["sqnr"]) == 14
    assert "full precision" in out and said(out, "reports.won-back", method="INT4 QAT")
    eight, four = (min(variant["sqnr"].values()) for variant in report["variants"][:2])
    assert eight - four == pytest.approx(24, abs=2)  # 6 dB a bit
    for name in ("recipe.yaml", "plan.txt", "metrics.jsonl", "checkpoints/train.pt"):
        assert (run / name).is_file()
    assert [json.loads(line)["weight_bits"] for line in (run / "metrics.jsonl").read_text().splitlines()] == (
        [[8]] * 2 + [[6]] * 2 + [[4]] * 4
    )
    export = run / "exports" / "compressed-tensors"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and said(out, "verify.equal", layers=14)
    code, out, _ = call(capsys, "verify", run / "exports" / "compressed-tensors-int8-naive")
    assert code == 0 and said(out, "verify.equal", layers=14)
    before = (export / "model.safetensors").read_bytes()
    code, out, _ = call(capsys, "export", run, "--output", tmp_path / "again")
    assert code == 0 and (tmp_path / "again" / "model.safetensors").read_bytes() == before
    code, out, _ = call(
        capsys,
        "evaluate",
        export,
        "--data",
        held_out_folder,
        "--reference",
        model_folder,
        "--samples",
        4,
        "--sequence-length",
        32,
    )
    qat = report["variants"][2]
    assert code == 0 and said(out, "evaluate.perplexity", perplexity=f"{qat['perplexity']:.4f}")
    assert said(out, "evaluate.kl", kl=f"{qat['kl']:.6f}")
    # A finished run is not run again.
    code, out, err = call(capsys, "run", *arguments, "--resume")
    assert code == 0 and "Fine-tuning" not in err


def test_verify_notices_a_changed_checkpoint(arguments, tmp_path, capsys):
    assert call(capsys, "run", *arguments)[0] == 0
    state = tmp_path / "run" / "checkpoints" / "best.pt"
    trained = load_state(state)
    trained["model"]["model.layers.0.mlp.up_proj.weight"][0, 0] += 1.0
    torch.save(trained, state)
    code, out, _ = call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")
    assert code == 1 and said(out, "verify.one-differing", count=1, name="model.layers.0.mlp.up_proj")


def test_a_scratch_model_is_trained_once_and_cached(tmp_path, data_folder, capsys, monkeypatch):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))
    scratch = (
        "model: {scratch: {hidden_size: 64, intermediate_size: 96, layers: 2, heads: 4, kv_heads: 2, vocabulary: 400, "
        "steps: 4, batch_size: 2, sequence_length: 32}}\n"
    )
    recipe = tmp_path / "scratch.yaml"
    recipe.write_text(RECIPE + scratch)
    first = call(capsys, "run", recipe, "--data", data_folder, "--output", tmp_path / "a")
    second = call(capsys, "run", recipe, "--data", data_folder, "--output", tmp_path / "b")
    assert first[0] == second[0] == 0
    assert said(first[2], "runs.training-tokenizer") and not said(second[2], "runs.training-tokenizer")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    assert reports[0] == reports[1]


def _start(arguments, *more):
    command = [sys.executable, "-c", "from torchqat.cli import main; main()", "train", *map(str, arguments), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "2"}
    )


def test_a_killed_process_resumes_with_the_same_bits(arguments, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("steps: 8", "steps: 60").replace("checkpoint_every: 3", "checkpoint_every: 7"))
    whole = _start([*arguments[:-1], tmp_path / "whole"])
    killed = _start(arguments)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 20):
        assert killed.poll() is None and time.monotonic() < deadline, killed.stdout.read().decode()
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    stopped_at = load_state(tmp_path / "run" / "checkpoints" / "train.pt")["step"]
    assert 0 < stopped_at < 60
    resumed = _start(arguments, "--resume")
    assert resumed.wait() == 0, resumed.stdout.read().decode()
    assert whole.wait() == 0, whole.stdout.read().decode()
    a, b = (load_state(tmp_path / name / "checkpoints" / "train.pt") for name in ("whole", "run"))
    assert a["step"] == b["step"] == 60
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
    # Only lines of steps that were taken twice repeat; each step is there.
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert set(steps) == set(range(1, 61))


def test_check_prints_the_plan(recipe_file, model_folder, capsys):
    code, out, _ = call(capsys, "check", recipe_file, "--model", model_folder)
    assert code == 0
    assert "model.layers.1.mlp.down_proj" in out and said(out, "plan.layers", quantized=14, untouched=2)
    assert said(out, "plan.stage", until="25%", weights="int8")
    assert out.endswith(sentence("plan.valid", recipe=recipe_file) + "\n")


def test_doctor(capsys):
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    for word in ("torchqat", "torch ", "compressed-tensors", "gpu", "vllm"):
        assert word in out
    assert said(out, "device.auto-is-cpu")


def test_doctor_says_why_there_are_no_gpu_operators(capsys, monkeypatch):
    def gpu_operators(built, cuda):
        monkeypatch.setattr("torchqat._library.BUILT_WITH_CUDA", built)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return json.loads(call(capsys, "doctor", "--json")[1])["gpu operators"]

    assert gpu_operators(True, "13.0") == "built"
    assert gpu_operators(False, None) == sentence("build.no-cuda-in-torch")
    assert gpu_operators(False, "13.0") == sentence("build.cuda-not-built")


def _sentence(result, code, expected):
    assert result[0] == code, result
    assert re.search(expected, result[2]), result[2]
    assert "Traceback" not in result[2] and result[2].count("\n") == 1


def test_bad_input_is_one_sentence(recipe_file, model_folder, data_folder, tmp_path, capsys):
    base = ["run", recipe_file, "--output", tmp_path / "out"]

    def refused(arguments, expected):
        _sentence(call(capsys, *arguments), 2, expected)

    def of(model, data):
        return [*base, "--model", model, "--data", data]

    refused([*base, "--data", data_folder], matches("cli.refused", sentence=sentence("model.not-given")))
    refused([*base, "--model", model_folder], matches("cli.refused", sentence=sentence("data.not-given")))
    refused(of("./nowhere", data_folder), matches("model.no-folder", path="./nowhere"))
    refused(of("no/such-model", data_folder), matches("model.not-fetched", path="no/such-model"))
    refused(of(data_folder, data_folder), matches("model.no-configuration", path=data_folder, hint=""))
    refused(of(model_folder, "nowhere"), matches("data.nowhere", source="nowhere"))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(of(model_folder, empty), matches("data.no-text", source=empty))
    refused(["check", tmp_path / "none.yaml"], matches("recipe.not-readable", file=tmp_path / "none.yaml"))
    refused(["export", tmp_path], matches("runs.no-run", folder=tmp_path))
    refused(["verify", model_folder], matches("runs.export-of-none", folder=model_folder))
    run = tmp_path / "a-run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    refused(["verify", run], matches("runs.no-export-but-a-run", folder=run))
    for file in model_folder.glob("token*"):
        file.unlink()
    refused(of(model_folder, data_folder), matches("model.without-tokenizer", path=model_folder))
    assert not (tmp_path / "out").exists()


def test_unknown_layers_and_bad_groups_are_one_sentence(tmp_path, model_folder, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("version: 1\nlayers:\n  - match: model.layers.0.mlp.up_porj\n    weight: {dtype: int4}\n")
    near = matches("recipe.no-layer-matches", near="model.layers.0.mlp.up_proj")
    _sentence(call(capsys, "check", recipe, "--model", model_folder), 2, near)
    recipe.write_text(
        "version: 1\nlayers:\n  - {match: '*.down_proj', weight: float}\n  - {match: '*', weight: {dtype: int8}}\n"
    )
    overruled = matches("recipe.overruled", match="*.down_proj", later="*")
    _sentence(call(capsys, "check", recipe, "--model", model_folder), 2, overruled)
    recipe.write_text('version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4, group_size: 64}\n')
    result = call(capsys, "check", recipe, "--model", model_folder)
    layers = " and ".join(f"model.layers.{i}.mlp.down_proj" for i in range(2))
    values = {"layers": layers, "features": "in_features", "size": 96, "block": 64, "power": 32}
    assert result[0] == 2 and said(result[2], "recipe.group-does-not-divide", **values)


def test_damaged_models_are_one_sentence(recipe_file, model_folder, data_folder, tmp_path, capsys):
    command = ["run", recipe_file, "--model", model_folder, "--data", data_folder, "--output", tmp_path / "out"]
    weights = model_folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    _sentence(call(capsys, *command), 2, matches("checkpoints.tensors-too-long", file=weights))
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    _sentence(call(capsys, *command), 2, matches("checkpoints.header-too-long", claimed=18446744073709551615))
    weights.write_bytes(whole)
    from torchqat._library import load_safetensors, save_safetensors

    tensors = load_safetensors(str(weights))
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_safetensors(str(weights), tensors)
    _sentence(call(capsys, *command), 2, matches("model.not-finite", name="model.layers.1.mlp.up_proj.weight"))


def test_a_folder_of_other_files_is_never_touched(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    _sentence(call(capsys, "run", *arguments), 2, matches("runs.other-files", folder=tmp_path / "run"))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


def test_a_run_does_not_become_a_part_of_its_data(recipe_file, model_folder, data_folder, tmp_path, capsys):
    data = tmp_path / "texts"
    shutil.copytree(data_folder, data)
    before = sorted(data.rglob("*"))
    for command in ("run", "ptq"):
        arguments = [command, recipe_file, "--model", model_folder, "--data", data, "--output", data / "deep" / "run"]
        said = matches("runs.output-in-data", folder=data / "deep" / "run", data=data)
        _sentence(call(capsys, *arguments), 2, said)
    assert sorted(data.rglob("*")) == before


def test_a_failure_of_ours_is_one_sentence_with_code_1(recipe_file, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("torchqat.kinds.causal_lm.skeleton", lambda *_: 1 / 0)
    _sentence(
        call(capsys, "check", recipe_file, "--model", model_folder),
        1,
        matches("cli.failed", error="ZeroDivisionError", why="division by zero"),
    )


def test_check_reads_no_weights(tmp_path, model_folder, recipe_file, capsys):
    for file in model_folder.glob("*.safetensors"):
        file.unlink()
    code, out, err = call(capsys, "check", recipe_file, "--model", model_folder)
    assert code == 0 and said(out, "plan.layers", quantized=14), err


def test_check_of_a_model_of_70_billion_weights_takes_seconds(tmp_path, recipe_file, capsys):
    import time

    from transformers import LlamaConfig

    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256).save_pretrained(tmp_path / "large")
    begun = time.process_time()
    code, out, err = call(capsys, "check", recipe_file, "--model", tmp_path / "large")
    assert code == 0 and said(out, "plan.layers", quantized=560), err
    assert time.process_time() - begun < 30  # minutes and 280 GB, if it made them


def test_the_version_is_printed(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0 and out == f"torchqat {torchqat.__version__}\n"
    code, out, _ = call(capsys, "--version", "--json")
    assert code == 0 and json.loads(out) == {"version": torchqat.__version__}
