"""Each recipe that ships, run to its end on a small model: what users copy must work as it stands."""

import json
from pathlib import Path

import pytest
import torchqat
import transformers
from torchqat.recipes.shipped import shipped
from torchqat.runs.scratch import new_model

ROOT = Path(__file__).parents[2]


class Small:
    """Wide enough for groups of 128."""

    hidden_size, intermediate_size, layers, heads, kv_heads, sequence_length = 128, 256, 2, 4, 2, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("small") / "model"
    new_model(Small, 400, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def model_and_data(folder, data_folder, tmp_path, tokenizer):
    """By kind of model."""
    config = transformers.BertConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, vocab_size=400, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    t5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 400}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**t5, decoder_start_token_id=0)).save_pretrained(
        tmp_path / "seq2seq"
    )
    for name in ("classifier", "encoder", "seq2seq"):
        tokenizer.save_pretrained(tmp_path / name)
    lines = [
        json.dumps({"text": f"sentence number {i} of them", "label": i % 3, "source": f"number {i}", "target": f"{i}"})
        for i in range(60)
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    return {
        "causal_lm": (folder, data_folder),
        "classifier": (tmp_path / "classifier", tmp_path / "lines.jsonl"),
        "sentence_encoder": (tmp_path / "encoder", tmp_path / "lines.jsonl"),
        "seq2seq": (tmp_path / "seq2seq", tmp_path / "lines.jsonl"),
    }


@pytest.mark.parametrize("name", shipped())
def test_it_runs(name, model_and_data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # whose modules vision is given
    recipe = torchqat.load_recipe(name)
    model, data = map(str, model_and_data[recipe.model.kind])
    if name == "vision":
        model, data = "examples.python.digits:model", "examples.python.digits:training_data"
    recipe.model.path, recipe.model.scratch, recipe.data.train = model, None, data
    recipe.train.steps = min(4, recipe.train.steps)
    recipe.train.batch_size, recipe.train.sequence_length, recipe.train.validate_every = 2, 32, 2
    for samples in (recipe.data.calibration, recipe.data.evaluation):
        samples.samples, samples.sequence_length = 8, 32
    report = torchqat.run(recipe, output=tmp_path / "run")
    assert report.variants and all(variant.kl >= 0 for variant in report.variants)
    named = {"nvfp4": "nvfp4-qat", "mxfp4": "mxfp4-qat", "mxfp8": "mxfp8_e4m3-rtn", "fp8": "fp8_e4m3-rtn"}
    assert name not in named or named[name] in [variant.name for variant in report.variants]
    exported = sorted(folder.name for folder in (tmp_path / "run" / "exports").iterdir())
    for format in recipe.exports:
        assert any(one == format or one.startswith(f"{format}-") for one in exported)
    if recipe.mode == "auto":
        assert report.chosen and report.decision
