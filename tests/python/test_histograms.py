"""The pictures of weights and scales: shares against counts by hand."""

import copy

import pytest
import torch
import torchqat
from torch import nn
from torchqat.evaluation.histograms import histograms


@pytest.fixture
def pair():
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    text = 'version: 1\nlayers: [{match: "*", weight: {dtype: int4, group_size: 32, grid: full, scale: SCALE}}]\n'
    return model, lambda scale: torchqat.prepare(
        copy.deepcopy(model), torchqat.parse_recipe(text.replace("SCALE", scale), "recipe")
    )


def test_weights_before_and_after(pair):
    model, prepared = pair
    found = histograms(prepared("mse"), model)["weights"]
    assert sum(found["before"]) == pytest.approx(1.0) and sum(found["after"]) == pytest.approx(1.0)
    units = torch.cat([(layer.weight / layer.weight.std()).flatten() for layer in model])
    inside = ((units >= 0.0) & (units < 0.1)).double().mean().item()
    assert found["before"][40] == pytest.approx(inside, abs=1e-6)
    assert sum(share > 0 for share in found["after"]) < sum(share > 0 for share in found["before"])


def test_scales_over_those_of_the_float_range(pair):
    model, prepared = pair
    ranged = histograms(prepared("minmax"), model)["scales"]["after"]
    at_zero = int(80 * 2 / 3)
    assert ranged[at_zero] == pytest.approx(1.0)
    clipped = prepared("learned")
    with torch.no_grad():
        for layer in clipped:
            layer.weight_scale.copy_(torchqat.ops.choose_qparams(layer.weight, (1, 32), 4, "full")[0] / 2)
    assert sum(histograms(clipped, model)["scales"]["after"][:at_zero]) == pytest.approx(1.0)
