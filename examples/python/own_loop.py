"""Quantization-aware training in a loop of your own: a classifier of handwritten digits at 4 bits.

    pip install scikit-learn && python examples/python/own_loop.py

Needs no language model: ``prepare`` works on any module with linear layers.
"""

import copy

import torch
import torch.nn.functional as F
import torchqat
from sklearn.datasets import load_digits
from torch import nn

RECIPE = """
version: 1
layers:
  - match: "*"
    weight: {dtype: int2, group_size: 32, grid: full, scale: learned}
schedule:
  - {until: 20%, weight: int8}
  - {until: 40%, weight: int4}
  - {until: 100%, weight: int2}
train: {learning_rate: 2.0e-3, weight_decay: 0}
"""


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(-1) == y).float().mean().item()


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, recipe=None) -> None:
    groups = torchqat.parameter_groups(model, recipe) if recipe else model.parameters()
    optimizer = torch.optim.Adam(groups, lr=2e-3)
    schedule = torchqat.Schedule(model, recipe, steps, optimizer) if recipe else None
    for step in range(steps):
        rows = torch.randint(0, len(x), (128,), generator=torch.Generator().manual_seed(step))
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train_rows, test_rows = order[:1400], order[1400:]
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    train(model, x[train_rows], y[train_rows], 400)
    recipe = torchqat.parse_recipe(RECIPE)
    rounded = torchqat.prepare(copy.deepcopy(model), recipe, method="rtn")
    prepared = torchqat.prepare(copy.deepcopy(model), recipe)
    train(prepared, x[train_rows], y[train_rows], 400, recipe)
    for name, candidate in (("float", model), ("2 bits, rounded", rounded), ("2 bits, trained", prepared)):
        print(f"{name:16} {accuracy(candidate, x[test_rows], y[test_rows]):.1%}")
    torchqat.export(prepared, "build/digits")
    print(torchqat.verify("build/digits", prepared))


if __name__ == "__main__":
    main()
