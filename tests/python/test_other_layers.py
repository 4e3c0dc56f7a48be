"""Layers beside linear ones: Conv1D of transformers, convolutions."""

import copy

import pytest
import torch
import torchqat
import transformers
from sentences import matches
from test_weights import recipe_of
from torch import nn
from torchqat.layers.prepared import quant_layers


def test_layers_of_gpt2_are_linear_layers_stored_the_other_way(tmp_path):
    config = transformers.GPT2Config(vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    batches = [torch.randint(0, 128, (2, 32)) for _ in range(4)]
    weight = "{dtype: int4, group_size: 16, grid: full, scale: mse}"
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("blocks", weight, "initialize: {method: gptq}\n"))
    layers = quant_layers(prepared)
    assert len(layers) == 8 and {layer.kind for _, layer in layers} == {"Conv1D"}
    torchqat.calibrate(prepared, batches)
    twin = copy.deepcopy(model)
    for name, layer in layers:
        twin.get_submodule(name).weight.data.copy_(layer.quantized_weight().t())
    found, wanted = prepared(batches[0]).logits, twin(batches[0]).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(torchqat.UserError, match=matches("export.cannot-hold", format="compressed-tensors")):
        torchqat.export(prepared, tmp_path / "ct")


def test_gptq_of_a_layer_of_gpt2_is_that_of_a_linear_layer():
    from transformers.pytorch_utils import Conv1D

    theirs, ours, x = Conv1D(24, 16), nn.Linear(16, 24), torch.randn(256, 16)
    ours.weight.data.copy_(theirs.weight.t())
    ours.bias.data.copy_(theirs.bias)
    found = []
    for layer in (theirs, ours):
        method = "initialize: {method: gptq, objective: layer}\n"  # which a Conv1D has no gradients for
        text = recipe_of("0", "{dtype: int4, group_size: 8, grid: full, scale: mse}", method)
        model = torchqat.prepare(nn.Sequential(layer), text)
        torchqat.calibrate(model, [x])
        found.append((model[0].quantized_weight(), model(x)))
        model(x).square().sum().backward()
        found[-1] += (model[0].weight.grad,)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2].t())


CONVOLUTIONS = [
    (nn.Conv1d, {"kernel_size": 3, "padding": 1, "dilation": 2, "stride": 2}),
    (nn.Conv1d, {"kernel_size": 4, "groups": 4, "padding": "same", "padding_mode": "circular"}),
    (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2, "output_padding": 1}),
    (nn.ConvTranspose2d, {"kernel_size": (3, 2), "stride": 2, "groups": 2, "padding": 1}),
]


@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_convolutions_have_a_row_for_each_output_channel(kind, options):
    model = nn.Sequential(kind(8, 12, **options))
    prepared = torchqat.prepare(copy.deepcopy(model), recipe_of("*", "{dtype: int4, granularity: channel}"))
    layer = prepared[0]
    x = torch.randn(2, 8, 9, *([7] if kind is nn.ConvTranspose2d else []))
    assert layer.kind == kind.__name__ and layer.matrix_shape[0] == 12
    matrix = layer.quantized_weight().detach()
    assert all(row.unique().numel() <= 15 for row in matrix)
    twin = copy.deepcopy(model)
    layer.set_master(matrix)
    twin[0].weight.data.copy_(layer.weight)
    assert torch.equal(prepared(x), twin(x))
    for module in (prepared, twin):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, twin[0].weight.grad)


def test_patches_of_a_convolution_give_its_output():
    conv = nn.Conv1d(4, 6, 3, padding=2, dilation=2, stride=2, bias=False)
    layer = torchqat.prepare(nn.Sequential(conv), recipe_of("*"))[0]
    x = torch.randn(2, 4, 11)
    found = (layer.input_rows(x) @ layer.master.T).transpose(1, 2)
    torch.testing.assert_close(found, conv(x))
