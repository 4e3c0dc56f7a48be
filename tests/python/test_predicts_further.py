"""Layers that predict further tokens, which transformers leaves out of a model: copied, and verified."""

import copy
import json

import pytest
import torch
import torchqat
import transformers
from model_zoo.models import Entry, build
from safetensors.torch import load_file, save_file
from sentences import said, sentence
from test_kinds_vision_language import BLOCKS, recipe
from torchqat.checkpoints.readers.reading import read_tensors
from torchqat.kinds import find_kind


@pytest.fixture
def predicts_more(tmp_path):
    """A Qwen 3.5 with a layer that predicts further tokens, which transformers passes over."""
    folder = tmp_path / "predicts-more"
    build(Entry("qwen3_5", "image and text")).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    extra = {"mtp.layers.0.mlp.up_proj.weight": torch.randn(96, 64), "mtp.norm.weight": torch.randn(64)}
    save_file({**state, **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, extra


OWN = BLOCKS + '  - {match: "*conv1d", weight: float}\n'


@pytest.mark.parametrize("format", ["compressed-tensors", "safetensors"])
def test_heads_that_predict_further_tokens_are_copied(format, predicts_more, tmp_path):
    folder, extra = predicts_more
    notes = []
    model = find_kind("causal_lm").load(str(folder), "float32", notes.append)
    names = "mtp.layers.0.mlp.up_proj.weight and 1 more"
    assert notes == [sentence("model.passed-over", path=folder, names=names, kind="Qwen3_5ForConditionalGeneration")]
    prepared = torchqat.prepare(copy.deepcopy(model), recipe(OWN))
    out = torchqat.export(prepared, tmp_path / "out", format)
    stored = read_tensors(out)
    assert all(torch.equal(stored[name], tensor) for name, tensor in extra.items())
    checked = torchqat.verify(out, prepared)
    assert checked.ok, str(checked)
    if format == "safetensors":
        assert torchqat.load(model, out) is model
        return
    assert "mtp.layers.0.mlp.up_proj" in json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    file = next(out.glob("*.safetensors"))
    state = load_file(file)
    state["mtp.norm.weight"] += 1
    save_file(state, file, metadata={"format": "pt"})
    assert list(torchqat.verify(out, prepared).differing) == ["mtp.norm.weight"]
    del state["mtp.norm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    assert torchqat.verify(out, prepared).missing == ["mtp.norm.weight"]


def test_they_are_copied_of_a_model_that_transformers_loaded_too(predicts_more, tmp_path):
    folder, extra = predicts_more
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    out = torchqat.export(torchqat.prepare(model, recipe(OWN)), tmp_path / "out")
    stored = read_tensors(out)
    assert all(torch.equal(stored[name], tensor) for name, tensor in extra.items())
    assert torchqat.verify(out, model).ok


def test_of_a_part_of_a_model_nothing_else_is_copied(predicts_more, tmp_path):
    folder, _ = predicts_more
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    out = torchqat.export(torchqat.prepare(model, recipe(OWN)), tmp_path / "out")
    assert not [name for name in read_tensors(out) if "mtp" in name or "visual" in name]
    assert torchqat.verify(out, model).ok


def test_heads_in_codes_are_said_to_be_left_out(predicts_more):
    folder, _ = predicts_more
    state = load_file(folder / "model.safetensors")
    state["mtp.layers.0.mlp.up_proj.weight"] = state["mtp.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    notes = []
    model = find_kind("causal_lm").load(str(folder), "float32", notes.append)
    assert said(notes[0], "model.passed-over-in-codes", path=folder)
    out = torchqat.export(torchqat.prepare(model, recipe(OWN)), folder.parent / "out")
    assert not [name for name in read_tensors(out) if "mtp" in name]
