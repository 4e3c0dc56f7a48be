"""What ExecuTorch computes from codes of 4 bits and inputs of 8, a range for each token: what training did."""

import pytest
import torch
import torchqat
from engine_models import needs
from gguf_models import build as build_architecture

LAYERS = "{dtype: int4, group_size: 32}, input: {dtype: int8, symmetric: SIGN}"
RULE = f'version: 1\nlayers:\n  - {{match: "model.layers.*", weight: {LAYERS}}}\n'


def exported(folder, symmetric="false"):
    model = build_architecture("llama", num_hidden_layers=1)
    model = torchqat.prepare(model, torchqat.parse_recipe(RULE.replace("SIGN", symmetric))).eval()
    return model, torchqat.export(model, folder, "safetensors")


def test_xnnpack_computes_what_training_did(tmp_path):
    needs("executorch")
    model, folder = exported(tmp_path / "out")
    tokens = torch.randint(5, 320, (2, 24), generator=torch.Generator().manual_seed(2))
    checked = torchqat.verify(folder, model, tokens, engine="executorch")
    print(f"\n| {checked} |")
    assert checked.ok and checked.agreement.kl < 1e-5 and checked.agreement.same_text == 2, str(checked)


def test_inputs_that_it_rounds_otherwise_are_refused(tmp_path):
    needs("executorch")
    model, folder = exported(tmp_path / "out", "true")
    with pytest.raises(torchqat.UserError, match="engine executorch cannot run this model"):
        torchqat.verify(folder, model, engine="executorch")
