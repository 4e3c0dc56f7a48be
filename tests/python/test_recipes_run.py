"""Each recipe that ships, run to its end on a small model: what users copy must work as it stands."""

import json
from pathlib import Path

import pytest
import torchqat
import transformers
from torchqat.runs.scratch import new_model

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs(path, model_and_data, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parents[1])  # whose modules recipes name
    recipe = torchqat.load_recipe(str(path))
    if not recipe.model.path:
        model, data = model_and_data[recipe.model.kind]
        recipe.model.path, recipe.model.scratch, recipe.data.train = str(model), None, str(data)
    recipe.train.steps = min(4, recipe.train.steps)
    recipe.train.batch_size, recipe.train.sequence_length, recipe.train.validate_every = 2, 32, 2
    for samples in (recipe.data.calibration, recipe.data.evaluation):
        samples.samples, samples.sequence_length = 8, 32
    report = torchqat.run(recipe, output=tmp_path / "run")
    assert report.variants and all(variant.kl >= 0 for variant in report.variants)
    named = {"nvfp4_qat": "nvfp4-qat", "mxfp4_qat": "mxfp4-qat", "mxfp8": "mxfp8_e4m3-rtn", "fp8": "fp8_e4m3-rtn"}
    assert path.stem not in named or named[path.stem] in [variant.name for variant in report.variants]
    exported = sorted(folder.name for folder in (tmp_path / "run" / "exports").iterdir())
    for format in recipe.exports:
        assert any(name == format or name.startswith(f"{format}-") for name in exported)
    if recipe.mode == "auto":
        assert report.chosen and report.decision
