"""A small convolutional network on scikit-learn's digits, for the recipe vision: its model and data are functions.

    torchqat run vision --model examples.python.digits:model --data examples.python.digits:training_data \\
        --set data.evaluation.path=examples.python.digits:held_out_data

``model`` trains the float network from a fixed seed, in seconds; yours would load its weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPOCHS, _BATCH = 20, 64


def training_data() -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 8, 8]`` from 0 to 1, and their digits: four of five."""
    return _digits(held_out=False)


def held_out_data() -> tuple[Tensor, Tensor]:
    """The others."""
    return _digits(held_out=True)


def model() -> nn.Module:
    """The network, trained in full precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _trained(_network())


def _digits(held_out: bool) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(found.target, dtype=torch.int64)
    chosen = (torch.arange(len(labels)) % 5 == 0) == held_out
    return images[chosen], labels[chosen]


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _trained(network: nn.Module) -> nn.Module:
    images, labels = training_data()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(labels)).split(_BATCH):
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()
