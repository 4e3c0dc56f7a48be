"""Exports at the command line: a run in every format that can hold it, and the sentence for those that can't."""

import json

import format_tables
import pytest
import torchqat
from command import call
from conftest import RECIPE
from sentences import matches, said, sentence

HALF = RECIPE.replace("grid: full, scale: learned", "grid: full, scale: learned, scale_dtype: float16")


@pytest.fixture
def start(tmp_path, model_folder, data_folder):
    """Runs a recipe; returns the exit code and what was said."""

    def run(command, text, capsys):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        options = ["--model", model_folder, "--data", data_folder, "--output", tmp_path / "run"]
        return call(capsys, command, recipe, *options)

    return run


def test_a_run_becomes_any_format_that_can_hold_it(start, tmp_path, capsys, tiny_llama):
    code, _, err = start("run", HALF + "export: [gptq, gguf]\n", capsys)
    assert code == 0, err
    exports = tmp_path / "run" / "exports"
    # The recipe's formats; the comparisons are in the first of them.
    assert sorted(path.name for path in exports.iterdir()) == ["gguf", "gptq", "gptq-int4-naive", "gptq-int8-naive"]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [variant["export"] for variant in report["variants"]][-1] == "exports/gptq"
    for format in ("compressed-tensors", "gptq_v2", "awq", "modelopt", "safetensors"):
        code, out, err = call(capsys, "export", tmp_path / "run", "--format", format, "--max-shard-size", "40KB")
        assert code == 0 and said(out, "verify.equal", layers=14), err
        assert len(list((exports / format).glob("*.safetensors"))) > 1
    for format in ("gguf", "gptq", "awq", "modelopt", "safetensors"):
        code, out, _ = call(capsys, "verify", exports / format, "--engine", "reader")
        assert code == 0 and said(out, "verify.equal", layers=14)


def test_verify_bench_prints_a_table(start, tmp_path, capsys):
    assert start("run", RECIPE, capsys)[0] == 0
    code, out, err = call(capsys, "verify", tmp_path / "run/exports/compressed-tensors", "--bench")
    assert code == 0, err
    assert "float" in out and "generation, tokens/s" in out and "peak memory, MB" in out


def test_comparisons_that_the_format_cannot_hold_go_into_another(start, tmp_path, capsys):
    code, _, err = start("run", HALF + "export: [awq]\n", capsys)
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "run" / "exports").iterdir())
    assert names == ["awq", "awq-int4-naive", "compressed-tensors-int8-naive"]


def test_what_cannot_be_written_is_said_before_anything_is_done(start, tmp_path, capsys):
    for command in ("run", "check"):
        text = RECIPE + "export: [modelopt, awq]\n"
        text = (
            text.replace("dtype: int4", "dtype: int3")
            .replace("weight: int4", "weight: int3")
            .replace("int8, int4", "int8")
        )
        if command == "check":
            recipe = tmp_path / "recipe.yaml"
            recipe.write_text(text)
            code, _, err = call(capsys, "check", recipe, "--model", tmp_path / "model")
        else:
            code, _, err = start(command, text, capsys)
        layer = "model.layers.0.self_attn.q_proj"
        others = "compressed-tensors, compressed-tensors-0.18, gptq, gptq_v2, gguf, mlx, onnx and safetensors"
        assert code == 2 and said(err, "export.cannot-hold", format="modelopt", layer=layer, others=others)
    assert not (tmp_path / "run").exists()


def test_an_export_that_cannot_be_is_refused(start, tmp_path, capsys):
    assert start("train", RECIPE.replace("int4, group_size: 32", "int4, group_size: 16"), capsys)[0] == 0
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "gguf")
    why = sentence("export.because-odd-groups", columns=16)
    others = "compressed-tensors, compressed-tensors-0.18, gptq, gptq_v2, awq, modelopt, onnx and safetensors"
    assert code == 2 and said(err, "export.cannot-hold", format="gguf", why=why, others=others)
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "onnx")
    assert code == 2 and said(err, "export.no-language-model")
    code, _, err = call(capsys, "export", tmp_path / "run", "--format", "bin")
    assert code == 2 and said(err, "export.unknown-format", format="bin")
    code, _, err = call(capsys, "export", tmp_path / "run", "--max-shard-size", "much")
    assert code == 2 and said(err, "export.shard-size", size="much")
    code, _, err = call(capsys, "verify", tmp_path, "--engine", "transformers")
    assert code == 2


def test_a_run_without_training_exports_too(start, tmp_path, capsys):
    assert start("ptq", HALF, capsys)[0] == 0
    code, out, err = call(capsys, "export", tmp_path / "run", "--format", "gguf", "--embeddings", "q8_0")
    assert code == 0 and said(out, "verify.equal", layers=14), err


def test_the_documented_tables_are_those_of_the_code():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert format_tables.tables() in text and format_tables.updated(text) == text


def test_the_table_says_what_export_does(tmp_path):
    """Each yes is a checkpoint that reads back, each dash a sentence."""
    import torch
    from torch import nn
    from torchqat.model.noted import note_preparation
    from torchqat.model.prepare import replace_layers

    for title, weight, input in format_tables.SCHEMES:
        model = nn.Sequential(nn.Linear(256, 256))
        plan = [torchqat._library.LayerPlan("0", 256, 256, weight, input)]
        replace_layers(model, plan, torchqat._library.Initialize("mse"))
        note_preparation(model, torchqat._library.Initialize("mse"))
        torchqat.calibrate(model, [torch.randn(8, 256)])
        for format in torchqat._library.formats():
            arguments = {"example": torch.randn(2, 256)} if format.name == "onnx" else {}
            if format.name == "gguf":
                continue  # of language models: tests/python/test_gguf.py
            if format.refusal(plan[0]):
                with pytest.raises(
                    torchqat.UserError, match=matches("export.cannot-hold", format=format.name, layer=0)
                ):
                    torchqat.export(model, tmp_path / "out", format.name, **arguments)
            else:
                torchqat.export(model, tmp_path / "out", format.name, **arguments)
                checked = torchqat.verify(tmp_path / "out", model, engine="reader")
                assert checked.ok, f"{title} in {format.name}: {checked}"
