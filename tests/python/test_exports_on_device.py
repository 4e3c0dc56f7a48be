"""Exports, verification and engines of a model on a GPU that is pretended."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchqat
from test_on_device import CUDA, FIXED, ids, logits, places, recipe, small_classifier, small_conv
from torchqat.device import CPU, device_of
from torchqat.verification.engines import VLLM, Question, Speed
from torchqat.verification.engines.question import speed_rows
from torchqat.verification.engines.workers import serving

# -- exports -----------------------------------------------------------------------------------------------------------


FP8 = "weight: {dtype: fp8_e4m3}, input: {dtype: fp8_e4m3}"
SEARCHED = "weight: {dtype: int4, group_size: 32, grid: full, scale: mse}"
FORMATS = [(format, SEARCHED) for format in ("compressed-tensors", "gptq", "gptq_v2", "awq", "safetensors", "gguf")]
FORMATS += [
    ("compressed-tensors", FIXED),
    ("safetensors", FIXED),
    ("modelopt", FP8),
    *((format, "weight: {dtype: nvfp4, scale: mse}") for format in ("compressed-tensors", "modelopt")),
    *((format, "weight: {dtype: mxfp4}") for format in ("compressed-tensors", "gguf", "mlx", "dense")),
]


@pytest.mark.parametrize("format, rule", FORMATS)
def test_exports_of_a_model_on_a_gpu_are_the_hosts_bytes(format, rule, tiny_llama, tokenizer, tmp_path, gpu):
    model = torchqat.prepare(tiny_llama, recipe(rule=rule))
    torchqat.calibrate(model, ids(), logits)
    torchqat.export(model, tmp_path / "host", format, tokenizer)
    torchqat.export(model.to(CUDA), tmp_path / "gpu", format, tokenizer)
    files = {path.name: path.read_bytes() for path in (tmp_path / "host").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "gpu").iterdir()} == files
    assert device_of(model) == CUDA
    assert torchqat.verify(tmp_path / "gpu", model, engine="reader").ok


def test_graphs_of_a_model_on_a_gpu(tmp_path, gpu):
    pytest.importorskip("onnx")
    rule = "weight: {dtype: int8}, input: {dtype: int8, granularity: tensor}"
    model, x = torchqat.prepare(small_conv(), recipe(rule=rule, match="*")), torch.randn(2, 3, 8, 8)
    torchqat.calibrate(model, [x])
    torchqat.export(model, tmp_path / "host", "onnx", example=x)
    torchqat.export(model.to(CUDA), tmp_path / "gpu", "onnx", example=x.to(CUDA))
    assert places(model) == {CUDA}
    files = [(tmp_path / folder / "model.onnx").read_bytes() for folder in ("host", "gpu")]
    assert files[0] == files[1]


# -- verify and engines ------------------------------------------------------------------------------------------------


def test_a_classifier_is_verified_on_the_gpu(tmp_path, gpu):
    model = torchqat.prepare(small_classifier(), recipe(rule=SEARCHED, match="bert.encoder.*"))
    folder = torchqat.export(model, tmp_path / "out", "compressed-tensors")
    before = gpu.most
    found = torchqat.verify(folder, model, device="cuda")
    assert found.ok and found.agreement is not None and gpu.most > before
    assert places(model) == {CPU}


def test_an_engine_finds_the_gpu_that_is_meant_and_its_memory_free(monkeypatch, tmp_path, gpu):
    asked, order = [], []

    def started(command, env, **_):
        order.append("engine")
        asked.append((env.get("CUDA_VISIBLE_DEVICES"), json.loads(Path(command[3]).read_text())["device"]))
        return SimpleNamespace(returncode=1, stderr="Error: none here")

    monkeypatch.setattr("subprocess.run", started)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("released"))
    monkeypatch.setenv("TORCHQAT_VLLM", "python")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for own, device in (("", "cpu"), ("", "cuda:1"), ("4,6", "cuda:1")):
        if own:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own)
        with pytest.raises(torchqat.UserError):
            VLLM.serve("gptq", Question(str(tmp_path), [], device=device))
    assert asked == [(None, "cpu"), ("1", "cuda:0"), ("6", "cuda:0")]
    assert order == ["released", "engine"] * 3


def test_memory_is_that_of_the_gpu_where_one_was_used(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 0)
    assert serving.peak_memory() == (False, pytest.approx(serving.host_bytes(), rel=0.2))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3_000_000)
    assert serving.peak_memory() == (True, 3_000_000)
    host, there = Speed(1.0, 2_000_000), Speed(1.0, 3_000_000, on_gpu=True)
    assert speed_rows({"float": host, "export": host})[-1] == ("peak memory, MB", ["2", "2"])
    assert speed_rows({"float": there, "export": there})[-1] == ("peak GPU memory, MB", ["3", "3"])
    assert speed_rows({"float": host, "export": there})[-1] == ("peak memory, MB", ["2 host", "3 GPU"])
