"""Folders and files from strangers run no code: neither Python beside a model nor pickles, and lead nowhere else."""

import json
import os
import pickle
import shutil
import sys

import pytest
import torch
import torchqat
from sentences import matches, said
from torchqat.model.loading import load_model, load_tokenizer
from torchqat.model.outline import CheckpointReader, skeleton
from torchqat.training.state import load_training


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-was-run"


@pytest.fixture
def with_code(model_folder, marker):
    """A model of a kind that transformers does not know, with the code for it beside it."""
    (model_folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\n"
        "from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel\n"
        "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    )
    config = json.loads((model_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    config["model_type"] = "evil"
    (model_folder / "config.json").write_text(json.dumps(config))
    return model_folder


@pytest.mark.parametrize("load", [load_model, skeleton])
def test_code_beside_a_model_is_not_run(load, with_code, marker, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # nobody is asked either
    with pytest.raises(torchqat.UserError, match=matches("model.does-not-load", path=with_code)):
        load(str(with_code))
    assert not marker.exists()


def test_code_beside_a_tokenizer_is_not_run(with_code, marker):
    path = with_code / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    settings["tokenizer_class"] = "EvilTokenizer"
    path.write_text(json.dumps(settings))
    try:
        load_tokenizer(str(with_code))
    except torchqat.UserError as error:
        assert said(str(error), "model.no-tokenizer", path=with_code)
    assert not marker.exists()


def test_pickled_weights_are_not_read(model_folder, marker):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(torchqat.UserError, match=matches("model.does-not-load", what="causal language model")):
        load_model(str(model_folder))
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_in_training_states_are_not_run(zipped, tmp_path, marker):
    path = tmp_path / "train.pt"
    torch.save({"step": 1, "identity": Exploit(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(torchqat.UserError, match=matches("training.checkpoint-does-not-load", file=path)):
        load_training(path)
    assert not marker.exists()


def test_pickles_beside_parts_are_not_read(tmp_path, marker):
    """DCP's own reader unpickles a file .metadata; parts in safetensors have none."""
    step = tmp_path / "train" / "0000000001"
    step.mkdir(parents=True)
    (step / "facts.json").write_text('{"step": 1, "identity": "x", "version": 1}')
    (step / ".metadata").write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(torchqat.UserError, match=matches("training.checkpoint-does-not-load")):
        load_training(tmp_path / "train.pt").restore(torch.nn.Linear(2, 2))
    assert not marker.exists()


def test_an_index_that_leads_elsewhere_is_not_followed(model_folder, tmp_path):
    """What is read are the files of the folder; an index could name others."""
    shutil.move(model_folder / "model.safetensors", tmp_path / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.no-safetensors-in-folder", folder=model_folder)):
        CheckpointReader(model_folder)
    with pytest.raises(torchqat.UserError, match=matches("checkpoints.index-leads-elsewhere")):
        load_model(str(model_folder))


def test_an_export_leaves_a_link_and_what_it_leads_to(tiny_llama, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nlayers: [{match: 'model.layers.*', weight: {dtype: int4, group_size: 32}}]\n")
    model = torchqat.prepare(tiny_llama, torchqat.load_recipe(str(recipe)))
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").symlink_to(precious)
    expected = matches("export.not-replaceable", folder=out, name="model.safetensors")
    with pytest.raises(torchqat.UserError, match=expected):
        torchqat.export(model, out)
    assert precious.read_text() == "mine" and (out / "model.safetensors").is_symlink()
