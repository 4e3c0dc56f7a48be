"""Whole runs on a GPU that is pretended: every step's host code is refused where it mixes devices (pretend_gpu.py)."""

import json
from contextlib import nullcontext

import pytest
import torch
import torchqat
from command import call
from conftest import PTQ, RECIPE
from pretend_gpu import PretendGpu
from torchqat.device import CPU
from torchqat.runs.restore import open_run, trained_model

# Post-training quantization, with all that compares.
# Gradients do not go back over tensors of cuda without it.
ROUNDED = (
    PTQ.replace("method: gptq", "method: gptq, objective: layer")
    + "train: {steps: 0}\nevaluate: {compare: [int8], sensitivity: true}\n"
)
# What runs backwards is on another device than cuda: a torch without CUDA does not walk back over tensors of that.
TRAINED = RECIPE.replace("steps: 8", "steps: 4, control: true, validate_every: 2").replace(
    "compare: [int8, int4]", "compare: [], sensitivity: true"
)
AUTO = PTQ.replace("version: 1", "version: 1\nmode: auto") + (
    "train: {steps: 2, batch_size: 2, sequence_length: 32}\nsize: {bits_per_weight: 6}\nevaluate: {accept: {kl: 1.0e-9}}\n"
)


@pytest.fixture
def other(monkeypatch):
    """A device on which backward runs."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no such device
    with PretendGpu("xla:0") as gpu:
        monkeypatch.setattr("torchqat.runs.float_model.find_device", lambda asked, say: gpu.device)
        monkeypatch.setattr("torchqat.runs.opened.name_of", lambda device: str(device))
        yield gpu


def test_post_training_quantization_measures_what_the_host_does(begin, gpu, tmp_path, task_file, monkeypatch):
    text = ROUNDED.replace("compare:", f"task: {task_file}, compare:")
    there = begin(text)
    assert there.environment["device"] == "Pretended" and gpu.most > 0
    here = begin(text, device="cpu", output=tmp_path / "host")
    assert here.baseline["perplexity"] == pytest.approx(there.baseline["perplexity"], rel=1e-4)
    assert here.baseline["task_scores"] == there.baseline["task_scores"]
    for one, other in zip(here.variants, there.variants, strict=True):
        assert one.name == other.name and one.kl == pytest.approx(other.kl, rel=0.02)
    assert here.sensitivity.keys() == there.sensitivity.keys()


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps({"prompt": "def ", "choices": ["function", "return"], "answer": 0}) + "\n")
    return path


def test_models_lie_on_the_host_between_steps(begin, gpu, monkeypatch):
    seen = []
    write = torchqat.runs.steps.write_export

    def watched(run, model, *args, **options):
        seen.append({tensor.device for one in (model, run.original) for tensor in one.state_dict().values()})
        return write(run, model, *args, **options)

    monkeypatch.setattr("torchqat.runs.steps.write_export", watched)
    begin(ROUNDED.replace("sensitivity: true", "sensitivity: false"))
    assert seen and all(places == {CPU} for places in seen)


def test_training_the_control_and_the_best_state(begin, other, tmp_path):
    found = begin(TRAINED)
    assert [variant.name for variant in found.variants] == ["float-control", "int4-qat"]
    assert found.environment["device"] == "xla:0" and found.sensitivity
    model = trained_model(open_run(tmp_path / "run"))
    assert {tensor.device for tensor in model.state_dict().values()} == {CPU}


@pytest.mark.parametrize("loss, place", [("forward_kl", "xla:0"), ("cross_entropy", "cpu")])
def test_the_float_model_takes_room_where_steps_ask_it(loss, place, begin, other, tmp_path, monkeypatch):
    """Else it goes there for the while in which held-out text is measured."""
    seen, spread = [], torchqat.runs.fine_tune.spread

    def watched(run, model):
        found = spread(run, model)
        seen.append({str(tensor.device) for tensor in run.original.state_dict().values()})
        return found

    monkeypatch.setattr("torchqat.runs.fine_tune.spread", watched)
    found = begin(TRAINED.replace(", control: true", "") + f"distill: {{loss: {loss}}}\n")
    assert seen == [{place}] and found.variants[-1].kl > 0


def test_mode_auto(begin, other, tmp_path, monkeypatch):
    for room in ("ptq.calibrate", "runs.run"):  # here, parameters that are moved are other objects
        monkeypatch.setattr(f"torchqat.{room}.check_called", lambda *_: [])
    found = begin(AUTO)
    assert found.chosen and len(found.variants) >= 2


def test_a_run_that_is_resumed_on_the_gpu(begin, other, tmp_path):
    text = RECIPE.replace("compare: [int8, int4]", "compare: []").replace(
        "steps: 8", "steps: 8, oscillation: {method: freeze, threshold: 0.001}"
    )
    whole = begin(text, output=tmp_path / "whole")
    stopped = []

    class Stopped(Exception):
        pass

    def stop(step, figures):
        if step == 7 and not stopped:
            stopped.append(step)
            raise Stopped

    from torchqat.runs.progress import Progress

    progress = Progress(quiet=True)
    progress.steps = lambda what, total: stop
    with pytest.raises(Stopped):
        begin(text, progress=progress)
    again = begin(text, resume=True)
    assert again.variants[-1].kl == whole.variants[-1].kl
    files = [next((tmp_path / run / "exports").glob("*/model.safetensors")).read_bytes() for run in ("whole", "run")]
    assert files[0] == files[1]


def test_a_streamed_run(arguments, recipe_file, tmp_path, gpu, capsys):
    recipe_file.write_text(PTQ)
    code, _, err = call(capsys, "ptq", *arguments, "--stream", "--device", "cuda")
    assert code == 0, err
    assert gpu.most > 0
    code, _, err = call(capsys, "ptq", *arguments[:-1], tmp_path / "host", "--stream", "--device", "cpu")
    assert code == 0, err
    files = [(tmp_path / run / "exports" / "compressed-tensors" / "config.json").read_text() for run in ("run", "host")]
    assert files[0] == files[1]
    code, _, err = call(capsys, "verify", tmp_path / "run" / "exports" / "compressed-tensors")
    assert code == 0, err


def test_a_float_model_trained_from_scratch(data_folder, tmp_path, other, monkeypatch):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))
    scratch = "{vocabulary: 300, hidden_size: 32, intermediate_size: 32, layers: 1, heads: 2, kv_heads: 1, steps: 2, "
    text = ROUNDED.replace(
        "data: {", f"model: {{scratch: {scratch}batch_size: 2, sequence_length: 32}}}}\ndata: {{", 1
    ).replace("sensitivity: true", "sensitivity: false")
    recipe = torchqat.parse_recipe(text, "recipe.yaml")
    found = torchqat.run(recipe, data=data_folder, output=tmp_path / "run")
    assert found.baseline["perplexity"] > 1


def test_evaluating_a_folder(model_folder, data_folder, gpu, capsys):
    code, out, err = call(
        capsys, "evaluate", model_folder, "--data", data_folder, "--reference", model_folder, "--samples", "4"
    )
    assert code == 0, err
    assert gpu.most > 0 and "KL to the reference 0.000000" in out
    code, host, _ = call(capsys, "evaluate", model_folder, "--data", data_folder, "--samples", "4", "--device", "cpu")
    assert host.split()[1][:6] == out.split()[1][:6]
