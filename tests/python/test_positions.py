"""Sequences that are longer than a model has positions for."""

import json

import pytest
import transformers
from command import call
from conftest import RECIPE
from sentences import said


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHQAT_CACHE", str(tmp_path / "cache"))


def test_more_positions_than_the_model_embeds(tmp_path, tokenizer, data_folder, capsys):
    """Torch would stop at an index out of range."""
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("model.layers.*", "transformer.h.*") + "export: [safetensors]\n")
    code, _, err = call(capsys, "run", path, "--model", folder, "--data", data_folder, "--output", tmp_path / "run")
    assert code == 2 and said(err, "data.more-positions", model=folder, most=16, longest=32), err
    code, _, err = call(capsys, "evaluate", folder, "--data", data_folder, "--sequence-length", 17)
    assert code == 2 and said(err, "data.more-positions", model=folder, most=16, longest=17), err
    assert call(capsys, "evaluate", folder, "--data", data_folder, "--sequence-length", 16)[0] == 0


def test_more_positions_than_the_model_was_made_for(model_folder, data_folder, capsys):
    """Where positions are computed they go on: that is said."""
    code, out, err = call(capsys, "evaluate", model_folder, "--data", data_folder, "--sequence-length", 1100)
    most = json.loads((model_folder / "config.json").read_text())["max_position_embeddings"]
    assert code == 0 and said(out + err, "data.beyond-positions", model=model_folder, most=most, longest=1100), err
