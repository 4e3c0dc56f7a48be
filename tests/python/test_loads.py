"""Whether transformers' own loader takes a compressed-tensors checkpoint of an architecture is known before there is one."""

import copy
import json

import pytest
import torch
import torchqat
import transformers
from sentences import said
from torchqat.checkpoints.export import check_exports, export_notes
from torchqat.reports.serving import how_to_load
from torchqat.verification.engines.transformers import load_in_transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
TWO = "layers:\n  - {match: blocks, weight: WEIGHT}\n  - {match: '*.dense_h_to_4h', weight: {dtype: int8}}\n"
ONE = "layers:\n  - {match: blocks, weight: WEIGHT}\n"


def _recipe(text):
    weight = "{dtype: int4, group_size: 32, grid: full}"
    return torchqat.parse_recipe(f"version: 1\n{text.replace('WEIGHT', weight)}", "recipe")


def _falcon():
    torch.manual_seed(0)
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SIZES)).eval()


def _exported(text, folder):
    model = torchqat.prepare(_falcon(), _recipe(text))
    return model, torchqat.export(model, folder)


def test_what_transformers_cannot_read_is_refused_before_training():
    """It has a converter for this type that it cannot rewrite for packed weights."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    model = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**sizes))
    plan = torchqat.make_plan(model, _recipe(ONE))
    with pytest.raises(torchqat.UserError) as told:
        check_exports(model, plan, ["compressed-tensors"], writes_text=False)
    assert said(str(told.value), "export.unreadable-by-transformers", model="Dinov2ForImageClassification")
    check_exports(model, plan, ["safetensors"], writes_text=False)


def test_a_checkpoint_that_loads_dense_alone_says_so(tmp_path):
    model, folder = _exported(ONE, tmp_path / "out")
    notes = export_notes(model, "compressed-tensors", folder)
    assert [said(note, "export.loads-dense-alone", model="FalconForCausalLM") for note in notes] == [True]
    with pytest.raises(AttributeError, match="weight"):  # what the note says
        transformers.FalconForCausalLM.from_pretrained(folder)
    code = how_to_load(folder, "compressed-tensors", str(folder), True).split("```python")[1].split("```")[0]
    found = {}
    exec(code, found)  # what the card says
    weight = found["model"].transformer.h[1].mlp.dense_4h_to_h.weight
    assert torch.equal(weight, model.transformer.h[1].mlp.dense_4h_to_h.quantized_weight())


@pytest.mark.parametrize("text", [ONE, TWO], ids=["one scheme", "two"])
def test_it_is_said_before_training(text):
    with torch.device("meta"):
        model = _falcon()
    notes = check_exports(model, torchqat.make_plan(model, _recipe(text)), ["compressed-tensors", "gptq_v2"], True)
    assert [said(note, "export.loads-dense-alone") for note in notes] == [text == ONE]
    assert [said(note, "export.does-not-load") for note in notes] == [text == TWO]


def test_a_checkpoint_of_several_schemes_says_so_and_is_verified(tmp_path):
    model, folder = _exported(TWO, tmp_path / "out")
    assert len(json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]) == 2
    notes = export_notes(model, "compressed-tensors", folder)
    assert [said(note, "export.does-not-load", model="FalconForCausalLM") for note in notes] == [True]
    with pytest.raises(AttributeError, match="weight"):
        transformers.FalconForCausalLM.from_pretrained(folder)
    loaded = load_in_transformers(folder)
    for name in ("dense_h_to_4h", "dense_4h_to_h"):
        own = getattr(model.transformer.h[0].mlp, name).quantized_weight()
        assert torch.equal(getattr(loaded.transformer.h[0].mlp, name).weight, own)
    assert torchqat.verify(folder, model).ok


@pytest.mark.parametrize("text", [ONE, ONE + "  - {match: '*.mlp.down_proj', weight: {dtype: int8}}\n"])
def test_others_have_no_note(text, tiny_llama, tmp_path):
    model = torchqat.prepare(copy.deepcopy(tiny_llama), _recipe(text))
    folder = torchqat.export(model, tmp_path / "out")
    assert export_notes(model, "compressed-tensors", folder) == []
    assert "dequantize" not in how_to_load(folder, "compressed-tensors", "x", True)


def test_a_model_of_no_library_has_no_note(tmp_path):
    plain = torch.nn.Sequential(torch.nn.Linear(64, 64))
    model = torchqat.prepare(
        plain, torchqat.parse_recipe("version: 1\nlayers: [{match: '*', weight: {dtype: int4}}]\n", "r")
    )
    assert export_notes(model, "compressed-tensors", torchqat.export(model, tmp_path / "out")) == []
