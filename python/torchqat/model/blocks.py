"""The repeated blocks of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from torchqat.layers.quant_layer import QuantLayer

NamedModules = list[tuple[str, nn.Module]]


def find_blocks(model: nn.Module, kind: type[nn.Module] = QuantLayer) -> NamedModules:
    """The repeated blocks of ``model``, of all ``block_lists``, in the order in which it holds them; else none.

    Which of them it runs, in which order and on what, is not said by that: ``torchqat.ptq.blocks`` tries it.
    """
    return [block for blocks in block_lists(model, kind) for block in blocks]


def block_lists(model: nn.Module, kind: type[nn.Module] = QuantLayer) -> list[NamedModules]:
    """The lists of repeated blocks of ``model``, an encoder's and a decoder's: the outermost with layers of ``kind``.

    A list inside a block, of experts or of the parts of a stage, is part of the block. A list of lists is no list of
    blocks, but each of its elements is one, since it cannot be run itself; a list of layers of ``kind`` is none either.

    Returns:
        Names and modules, list after list; all elements of each, also those without layers of ``kind``.
    """
    found: list[NamedModules] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name.startswith(inside) and _is_list_of_blocks(module, kind):
            dot = f"{name}." if name else ""
            found.append([(f"{dot}{place}", child) for place, child in enumerate(module)])
            inside += (dot,)
    return found


def _is_list_of_blocks(module: nn.Module, kind: type[nn.Module]) -> bool:
    return (
        isinstance(module, nn.ModuleList)
        and not any(isinstance(child, (kind, nn.ModuleList)) for child in module)
        and any(isinstance(inside, kind) for inside in module.modules())
    )


@contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove ``handles`` when the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
