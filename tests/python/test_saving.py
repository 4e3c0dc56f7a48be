"""``save_pretrained`` of a prepared model writes weights that no forward used: it is said, where it is called."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torchqat
from architectures import build
from sentences import matches
from torch import nn

RECIPE = "version: 1\nlayers: [{match: blocks, weight: {dtype: int4, group_size: 16}}]\n"
SHAPE = {"hidden_size": 32, "head_dim": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}


def prepared():
    return torchqat.prepare(build("Llama", **SHAPE), torchqat.parse_recipe(RECIPE))


@pytest.mark.parametrize("what", ("itself", "a copy", "a pickle"))
def test_saving_the_weights_before_rounding_is_said(what, tmp_path):
    model = {"itself": lambda m: m, "a copy": copy.deepcopy, "a pickle": lambda m: pickle.loads(pickle.dumps(m))}[what](
        prepared()
    )
    with pytest.warns(UserWarning, match=matches("training.saves-before-rounding")) as told:
        model.save_pretrained(tmp_path)
    assert [one.filename for one in told if "torchqat" in str(one.message)] == [__file__]
    assert (tmp_path / "model.safetensors").is_file()


def test_what_is_not_saved_so_says_nothing(tmp_path):
    model = prepared()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.state_dict()
        torchqat.export(model, tmp_path / "out", "safetensors")
        build("Llama", **SHAPE).save_pretrained(tmp_path / "float")


def test_a_model_that_nobody_has_is_freed_at_once():
    model = prepared()
    gc.collect()
    gc.disable()
    try:
        alive = weakref.ref(model.model.layers[0])
        before = alive() is not None
        del model
        assert before and alive() is None
    finally:
        gc.enable()


def test_an_embedding_that_renormalises_is_refused():
    model = nn.Sequential(nn.Embedding(8, 16, max_norm=1.0), nn.Linear(16, 4))
    recipe = torchqat.parse_recipe("version: 1\nlayers: [{match: type:Embedding, weight: {dtype: int4}}]\n")
    with pytest.raises(torchqat.UserError, match=matches("model.renormalised", layer="0")):
        torchqat.prepare(model, recipe)
    assert type(model[0]) is nn.Embedding
