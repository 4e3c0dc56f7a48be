"""What transformers passes over in silence in a folder is refused or noted."""

import json

import torch
from sentences import sentence
from test_sources import UP, changed, loaded, refused


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
