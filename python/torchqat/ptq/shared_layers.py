"""Modules that a model has in several places: what is found in one block must not be taken for all that they are given."""

from collections import Counter
from collections.abc import Iterator

from torch import Tensor, nn

from torchqat.ptq.block import Block


def note_shared(model: nn.Module, blocks: list[Block]) -> list[str]:
    """Let ``blocks``, all that ``model`` has, know which of their modules, or of these their parameters, are elsewhere too.

    Returns:
        The names of those that have weights of their own.
    """
    parts = [*(list(block.module.modules()) for block in blocks), list(_outside(model, {id(b.module) for b in blocks}))]
    holders = Counter(place for part in parts for place in {place for module in part for place in _places(module)})
    for block, part in zip(blocks, parts, strict=False):
        block.shared = {id(module) for module in part if any(holders[place] > 1 for place in _places(module))}
    shared = {place for block in blocks for place in block.shared}
    return [name for name, module in model.named_modules() if id(module) in shared and _has_weights(module)]


def _has_weights(module: nn.Module) -> bool:
    own = [getattr(module, "weight", None), *module._parameters.values()]  # experts have the weight of another module
    return any(isinstance(weight, Tensor) and weight.dim() > 1 for weight in own)


def _places(module: nn.Module) -> list[int]:
    return [id(module), *(id(parameter) for parameter in module._parameters.values() if parameter is not None)]


def _outside(module: nn.Module, blocks: set[int], seen: set[int] | None = None) -> Iterator[nn.Module]:
    """What is in ``module`` without a look into ``blocks``."""
    seen = set() if seen is None else seen
    if id(module) in blocks or id(module) in seen:
        return
    seen.add(id(module))
    yield module
    for child in module.children():
        yield from _outside(child, blocks, seen)
