"""The repeated blocks of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from torchqat.layers.quant_layer import QuantLayer


def find_blocks(model: nn.Module, kind: type[nn.Module] = QuantLayer) -> list[tuple[str, nn.Module]]:
    """The repeated blocks of ``model``: the elements of the list that holds most of its layers of ``kind``; else none.

    A list of such layers themselves is no list of blocks.
    """
    best: list[tuple[str, nn.Module]] = []
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(isinstance(child, kind) for child in module):
            held = sum(isinstance(child, kind) for child in module.modules())
            if held > most:
                most, best = held, [(f"{name}.{index}", child) for index, child in enumerate(module)]
    return best


@contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
