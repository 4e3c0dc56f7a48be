"""What transformers passes over in silence in a folder is refused or noted."""

import copy
import json

import pytest
import torch
import torchqat
from sentences import said, sentence
from test_sources import UP, changed, loaded, refused
from torchqat.kinds import find_kind

CAUSAL_LM = find_kind("causal_lm")


def test_codes_without_scales_are_no_weights(model_folder):
    """transformers casts whole numbers to weights of any size, and says nothing."""
    path = changed(model_folder, lambda state: state.update({UP: (state[UP] * 100).to(torch.int8)}))
    assert refused(path) == sentence("model.whole-numbers", folder=path, tensor=UP, dtype="I8")


def test_code_that_is_not_run_is_noted(model_folder):
    """transformers prefers its own class of the same type where remote code is not trusted."""
    assert loaded(model_folder)[1] == []
    file = model_folder / "config.json"
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": own}))
    own = "modeling_own.OwnForCausalLM"
    wanted = sentence("model.own-code", folder=model_folder, own=own, kind="LlamaForCausalLM")
    assert loaded(model_folder)[1] == [wanted]


def named(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("open_it", [CAUSAL_LM.load, CAUSAL_LM.outline])
def test_an_architecture_that_transformers_does_not_have_is_noted(model_folder, open_it):
    for given in (["LlamaWithMyAttention"], ["AutoModelForCausalLM"], "LlamaWithMyAttention"):
        heard, path = [], str(named(model_folder, architectures=given))
        open_it(path, "float32", heard.append)
        name = given if isinstance(given, str) else given[0]
        wanted = {"path": path, "name": name, "kind": "LlamaForCausalLM", "type": "llama"}
        assert heard == [sentence("model.architecture-unknown", **wanted)]


@pytest.mark.parametrize("open_it", [CAUSAL_LM.load, CAUSAL_LM.outline])
def test_an_architecture_of_another_model_is_noted(model_folder, open_it):
    for name in ("MistralForCausalLM", "LlamaForQuestionAnswering"):
        heard, path = [], str(named(model_folder, architectures=[name]))
        open_it(path, "float32", heard.append)
        wanted = {"path": path, "name": name, "kind": "LlamaForCausalLM", "type": "llama"}
        assert heard == [sentence("model.architecture-of-another", **wanted)]


def test_a_model_that_names_itself_or_nothing_is_not(model_folder):
    for given in (["LlamaForCausalLM"], ["Other", "LlamaForCausalLM"], [], None):
        heard = []
        CAUSAL_LM.load(str(named(model_folder, architectures=given)), "float32", heard.append)
        assert heard == []


def test_another_head_of_the_same_encoder_is_no_other_architecture(encoder_folder):
    heard = []
    for given in (["BertForMaskedLM"], ["BertModel"]):
        find_kind("sentence_encoder").load(str(named(encoder_folder, architectures=given)), "float32", heard.append)
    assert heard == []
    find_kind("sentence_encoder").load(
        str(named(encoder_folder, architectures=["RobertaModel"])), "float32", heard.append
    )
    assert len(heard) == 1 and said(heard[0], "model.architecture-of-another", name="RobertaModel", kind="BertModel")


def exported(model, folder, format, weight):
    recipe = f"version: 1\nlayers: [{{match: 'model.layers.*', weight: {{{weight}}}}}]\n"
    prepared = torchqat.prepare(copy.deepcopy(model), torchqat.parse_recipe(recipe, "recipe"))
    return str(torchqat.export(prepared, folder, format))


@pytest.mark.parametrize("open_it", [CAUSAL_LM.load, CAUSAL_LM.outline])
def test_an_export_in_floating_point_is_rounded_already(tiny_llama, tmp_path, open_it):
    path, heard = exported(tiny_llama, tmp_path / "out", "dense", "dtype: int4, group_size: 32"), []
    open_it(path, "float32", heard.append)
    assert heard == [sentence("model.exported-dense", path=path)]


def test_an_export_for_mlx_is_named(tiny_llama, tmp_path):
    path = exported(tiny_llama, tmp_path / "out", "mlx", "dtype: int4, group_size: 32, symmetric: false")
    assert refused(path) == sentence("model.not-made-dense", path=path, method="mlx")
