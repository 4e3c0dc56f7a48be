"""Training against the float model's outputs is without noise, whatever makes it, and recomputes only what can be."""

import copy

import pytest
import torch
import torchqat
import transformers
from loops import loop_for, settings
from sentences import matches
from small_net import recipe_for
from torch import nn
from torchqat.training.noise import find_noise, remove_dropout

HEADS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 100,
}
IMAGES = {"image_size": 16, "patch_size": 8}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 100,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def beit():
    config = {**HEADS, "num_hidden_layers": 3, **IMAGES}
    return transformers.BeitForImageClassification(transformers.BeitConfig(**config, drop_path_rate=0.5))


def swin():
    config = {"image_size": 32, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**config, drop_path_rate=0.5))


def mixtral():
    config = {**HEADS, "num_key_value_heads": 2, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**config, router_jitter_noise=0.3))


def phimoe():
    config = {**HEADS, "num_key_value_heads": 2, "num_local_experts": 4, "input_jitter_noise": 0.1}
    return transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**config))


def bart():
    return transformers.BartForCausalLM(transformers.BartConfig(**BART, decoder_layerdrop=0.3))


CASES = {
    "stochastic depth": (beit, {"pixel_values": torch.randn(4, 3, 16, 16)}, "drop_path"),
    "stochastic depth of windows": (swin, {"pixel_values": torch.randn(4, 3, 32, 32)}, "drop_path"),
    "jitter of a router": (mixtral, {"input_ids": torch.arange(3, 35).view(2, 16)}, "mlp"),
    "a sampling router": (phimoe, {"input_ids": torch.arange(3, 35).view(2, 16)}, "mlp"),
    "layers left out": (bart, {"input_ids": torch.arange(3, 35).view(2, 16)}, "decoder"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_draws_random_numbers_is_found_by_that(name):
    torch.manual_seed(0)
    build, inputs, part = CASES[name]
    model = build()
    remove_dropout(model)
    model.train()
    with torch.no_grad():
        loud = [model(**inputs).logits for _ in range(6)]
        assert not all(torch.equal(one, loud[0]) for one in loud)
        state = torch.get_rng_state()
        found = find_noise(model, lambda: model(**inputs))
        assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())
        assert found and all(part in module for module in found)
        for module in found:
            model.get_submodule(module).training = False
        still = [model(**inputs).logits for _ in range(6)]
        assert all(torch.equal(one, still[0]) for one in still)
        torch.testing.assert_close(still[0], model.eval()(**inputs).logits)


def test_a_loop_trains_without_it():
    torch.manual_seed(0)
    model = torchqat.prepare(mixtral(), recipe_for("{dtype: int8, group_size: 16}"))
    loop = loop_for(model, settings(steps=2, batch_size=2), steady=True)
    modes = []
    block = model.model.layers[0].mlp
    block.register_forward_hook(lambda module, *_: modes.append((module.training, module.gate.training)))
    tokens = torch.randint(0, 100, (500,))
    loop.batches = type(loop.batches)(tokens, 2, 16, 0)
    loop.run()
    assert loop.silenced == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert modes[-1] == (False, True)  # its parts still train


def test_observers_do_not_see_what_is_tried():
    torch.manual_seed(0)
    spec = "{dtype: int8, granularity: tensor, observer: moving_average}"
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model = torchqat.prepare(net, recipe_for("{dtype: int8}", spec))
    torchqat.calibrate(model, [torch.randn(8, 16)])
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert find_noise(model, lambda: model(100.0 * torch.randn(8, 16))) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_switched_off_is_said():
    class Loud(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    model = nn.Sequential(nn.Linear(4, 4), Loud()).train()
    with pytest.raises(torchqat.UserError, match=matches("training.noise", module="1")):
        find_noise(model, lambda: model(torch.randn(2, 4)))
    assert model[1].training
