"""Layers that checkpoints are tried with: random weights, outliers and empty rows among them, and scales as trained."""

import random

import torch
from torch import nn
from torchqat import QuantLinear


class Holder(nn.Module):
    """One layer in a model, which is what ``export`` takes."""

    def __init__(self, layer: QuantLinear):
        super().__init__()
        self.layer = layer


@torch.no_grad()
def random_linear(choose: random.Random, rows: int, cols: int, least: float = -2, bias: bool = False) -> nn.Linear:
    """Weights between 10^``least`` and 10 in size, one of them far off, and sometimes a row of zeros."""
    linear = nn.Linear(cols, rows, bias=bias)
    linear.weight.normal_().mul_(10.0 ** choose.uniform(least, 1))
    linear.weight[choose.randrange(rows), choose.randrange(cols)] *= 30
    if choose.random() < 0.2:
        linear.weight[choose.randrange(rows)] = 0
    return linear


@torch.no_grad()
def as_trained(layer: QuantLinear) -> QuantLinear:
    """Learned scales off every dtype but float32."""
    if layer.weight_spec.scale == "learned":
        layer.weight_scale.mul_(torch.rand_like(layer.weight_scale) * 0.6 + 0.7)
        if layer.weight_zero_point is not None:
            layer.weight_zero_point.add_(torch.randn_like(layer.weight_zero_point))
    return layer
