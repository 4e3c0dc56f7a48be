"""The command line as a user meets it: whole runs of a tiny model, and each bad input with its sentence."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from command import call
from conftest import RECIPE
from torchqat.files import load_state


def test_run_export_verify_evaluate(arguments, tmp_path, capsys, model_folder, data_folder):
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
    assert "full precision" in out and "INT4 QAT won back" in out
    eight, four = (min(variant["sqnr"].values()) for variant in report["variants"][:2])
    assert eight - four == pytest.approx(24, abs=2)  # 6 dB a bit
    for name in ("recipe.yaml", "plan.txt", "metrics.jsonl", "checkpoints/train.pt"):
        assert (run / name).is_file()
    assert [json.loads(line)["weight_bits"] for line in (run / "metrics.jsonl").read_text().splitlines()] == (
        [[8]] * 2 + [[6]] * 2 + [[4]] * 4
    )
    export = run / "exports" / "compressed-tensors"
    code, out, _ = call(capsys, "verify", export)
    assert code == 0 and "14 layers equal bit for bit" in out
    code, out, _ = call(capsys, "verify", run / "exports" / "compressed-tensors-int8-naive")
    assert code == 0 and "14 layers equal bit for bit" in out
    before = (export / "model.safetensors").read_bytes()
    code, out, _ = call(capsys, "export", run, "--output", tmp_path / "again")
    assert code == 0 and (tmp_path / "again" / "model.safetensors").read_bytes() == before
    code, out, _ = call(
        capsys,
        "evaluate",
        export,
        "--data",
        data_folder,
        "--reference",
        model_folder,
        "--samples",
        4,
        "--sequence-length",
        32,
    )
    qat = report["variants"][2]
    assert code == 0 and f"perplexity {qat['perplexity']:.4f}" in out and f"{qat['kl']:.6f} nats" in out
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
    assert code == 1 and "1 tensor differs, the first model.layers.0.mlp.up_proj" in out


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
    assert "Training the float model" in first[2] and "Training the float model" not in second[2]
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
    assert "model.layers.1.mlp.down_proj" in out and "14 layers quantized, 2 layers left alone" in out
    assert "until 25%: weights int8" in out and out.endswith("is valid.\n")


def test_doctor(capsys):
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    for word in ("torchqat", "torch ", "compressed-tensors", "gpu", "vllm"):
        assert word in out


def test_doctor_says_why_there_are_no_gpu_operators(capsys, monkeypatch):
    def gpu_operators(built, cuda):
        monkeypatch.setattr("torchqat._library.BUILT_WITH_CUDA", built)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return json.loads(call(capsys, "doctor", "--json")[1])["gpu operators"]

    assert gpu_operators(True, "13.0") == "built"
    assert gpu_operators(False, None) == "not built: torch has no CUDA here"
    assert gpu_operators(False, "13.0").startswith(
        "not built, though torch has CUDA: install the CUDA Toolkit, then run"
    )


def _sentence(result, code, text):
    assert result[0] == code, result
    assert text in result[2], result[2]
    assert "Traceback" not in result[2] and result[2].count("\n") == 1


def test_bad_input_is_one_sentence(recipe_file, model_folder, data_folder, tmp_path, capsys):
    base = ["run", recipe_file, "--output", tmp_path / "out"]
    _sentence(
        call(capsys, *base, "--data", data_folder), 2, "torchqat: model must be given, by model.path in the recipe"
    )
    _sentence(
        call(capsys, *base, "--model", model_folder), 2, "torchqat: data must be given, by data.train in the recipe"
    )
    _sentence(call(capsys, *base, "--model", "./nowhere", "--data", data_folder), 2, "but ./nowhere is not a folder")
    _sentence(
        call(capsys, *base, "--model", "no/such-model", "--data", data_folder), 2, "could not be fetched from the hub"
    )
    _sentence(
        call(capsys, *base, "--model", data_folder, "--data", data_folder), 2, "Hugging Face folder with a config.json"
    )
    _sentence(
        call(capsys, *base, "--model", model_folder, "--data", "nowhere"),
        2,
        "data must be a file or folder that exists",
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    _sentence(call(capsys, *base, "--model", model_folder, "--data", empty), 2, "data must have text")
    _sentence(call(capsys, "check", tmp_path / "none.yaml"), 2, "the recipe must be a readable file")
    _sentence(call(capsys, "export", tmp_path), 2, "RUN must be the folder of a run")
    _sentence(call(capsys, "verify", model_folder), 2, "must lie in the folder of the run that wrote it")
    assert not (tmp_path / "out").exists()


def test_unknown_layers_and_bad_groups_are_one_sentence(tmp_path, model_folder, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("version: 1\nlayers:\n  - match: model.layers.0.mlp.up_porj\n    weight: {dtype: int4}\n")
    _sentence(call(capsys, "check", recipe, "--model", model_folder), 2, "did you mean model.layers.0.mlp.up_proj?")
    recipe.write_text('version: 1\nlayers:\n  - match: "*"\n    weight: {dtype: int4, group_size: 64}\n')
    result = call(capsys, "check", recipe, "--model", model_folder)
    assert result[0] == 2 and "down_proj has in_features 96, which 64 does not divide" in result[2]


def test_damaged_models_are_one_sentence(recipe_file, model_folder, data_folder, tmp_path, capsys):
    command = ["run", recipe_file, "--model", model_folder, "--data", data_folder, "--output", tmp_path / "out"]
    weights = model_folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    _sentence(call(capsys, *command), 2, "must be a safetensors file, but its tensors take")
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    _sentence(call(capsys, *command), 2, "its header claims 18446744073709551615 bytes")
    weights.write_bytes(whole)
    from torchqat._library import load_safetensors, save_safetensors

    tensors = load_safetensors(str(weights))
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_safetensors(str(weights), tensors)
    _sentence(call(capsys, *command), 2, "model.layers.1.mlp.up_proj.weight has NaN or infinite elements")


def test_a_folder_of_other_files_is_never_touched(arguments, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    _sentence(call(capsys, "run", *arguments), 2, "output must be an empty folder or that of a run")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"


def test_a_failure_of_ours_is_one_sentence_with_code_1(recipe_file, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("torchqat.kinds.causal_lm.skeleton", lambda *_: 1 / 0)
    _sentence(
        call(capsys, "check", recipe_file, "--model", model_folder),
        1,
        "failed with ZeroDivisionError: division by zero",
    )


def test_check_reads_no_weights(tmp_path, model_folder, recipe_file, capsys):
    for file in model_folder.glob("*.safetensors"):
        file.unlink()
    code, out, err = call(capsys, "check", recipe_file, "--model", model_folder)
    assert code == 0 and "14 layers quantized" in out, err


def test_check_of_a_model_of_70_billion_weights_takes_seconds(tmp_path, recipe_file, capsys):
    import time

    from transformers import LlamaConfig

    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256).save_pretrained(tmp_path / "large")
    begun = time.process_time()
    code, out, err = call(capsys, "check", recipe_file, "--model", tmp_path / "large")
    assert code == 0 and "560 layers quantized" in out, err
    assert time.process_time() - begun < 30  # minutes and 280 GB, if it made them
