"""A network of two linear layers, and a recipe that reaches all layers of any."""

import torch
import torchqat
from torch import nn


def recipe_for(weight: str, input: str = "", rest: str = ""):
    extra = f", input: {input}" if input else ""
    return torchqat.parse_recipe(f'version: 1\nlayers:\n  - {{match: "*", weight: {weight}{extra}}}\n{rest}')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))
