"""Scales that are folded into what makes an input: into nothing that another batch would miss."""

import copy

import pytest
import torch
import torchqat
from torch import nn
from torchqat.ptq.block import in_floating_point


class Expert(nn.Module):
    """Between its two layers channels go no linear way, whatever their names say."""

    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.gelu(self.up_proj(x)))


class Experts(nn.Module):
    """Those that a batch needs, by its length, are given what the norm gives; the others are not called."""

    def __init__(self, chosen: dict[int, tuple[int, ...]]):
        super().__init__()
        self.chosen = chosen
        self.norm = nn.RMSNorm(16)
        self.experts = nn.ModuleList(Expert() for _ in range(3))

    def forward(self, x):
        given = self.norm(x)
        return x + sum(self.experts[index](given) for index in self.chosen[x.shape[1]])


class Net(nn.Module):
    def __init__(self, chosen: dict[int, tuple[int, ...]]):
        super().__init__()
        self.layers = nn.ModuleList(Experts(chosen) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def batches():
    """Of a feature that is far larger than the others, which has scales worth folding."""
    found = [torch.randn(8, length, 16) for length in (4, 5, 6)]
    for x in found:
        x[..., 3] *= 20.0
    return found


@pytest.mark.parametrize(
    "chosen",
    [
        {4: (0,), 5: (1,), 6: (0, 2)},  # the last batch reaches the last expert, and one that the first has reached
        {4: (0, 1, 2), 5: (0, 1, 2), 6: (0, 1, 2)},
        {4: (0,), 5: (1,), 6: (2,)},
    ],
)
@pytest.mark.parametrize("match", ["*experts.*", "*experts.2.*"])
def test_what_awq_folds_leaves_every_batch_as_it_was(chosen, match):
    net = Net(chosen)
    recipe = torchqat.parse_recipe(
        f'version: 1\nlayers: [{{match: "{match}", weight: {{dtype: int3, scale: mse}}}}]\ninitialize: {{method: awq}}\n'
    )
    model = torchqat.prepare(copy.deepcopy(net), recipe)
    given = batches()
    torchqat.calibrate(model, given)
    with torch.no_grad(), in_floating_point(model):
        for x in given:
            torch.testing.assert_close(model(x), net(x), rtol=1e-3, atol=1e-3)


def test_experts_that_are_all_called_have_scales_folded():
    net = Net({length: (0, 1, 2) for length in (4, 5, 6)})
    recipe = torchqat.parse_recipe(
        'version: 1\nlayers: [{match: "*experts.*", weight: {dtype: int3, scale: mse}}]\ninitialize: {method: awq}\n'
    )
    model = torchqat.prepare(copy.deepcopy(net), recipe)
    torchqat.calibrate(model, batches())
    assert not torch.equal(model.layers[0].norm.weight, net.layers[0].norm.weight)
