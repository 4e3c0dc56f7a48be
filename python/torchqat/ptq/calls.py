"""What modules of others are called with and give: tensors in tuples, lists and mappings, whatever their structure."""

import copy
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Where in a structure something is: places and keys, from the outside in.
Path = tuple[int | str, ...]


def tensors(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in ``tree`` and where each is; objects of other classes than tuples, lists and dicts are not entered."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, (tuple, list)):
        for place, child in enumerate(tree):
            yield from tensors(child, (*path, place))
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from tensors(child, (*path, key))


def main_tensor(tree: Any) -> Tensor | None:
    """The first tensor of floating point in what a block gives: its hidden states."""
    return next((tensor for _, tensor in tensors(tree) if tensor.is_floating_point()), None)


def at(tree: Any, path: Path) -> Any:
    """What lies in nested containers at ``path``, from the outside in."""
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Any, values: dict[Path, Any], path: Path = ()) -> Any:
    """``tree`` with other values in some places; what has none of them stays the same object."""
    if path in values:
        return values[path]
    if not any(place[: len(path)] == path for place in values):
        return tree
    if isinstance(tree, dict):
        changed = copy.copy(tree)
        for key, child in tree.items():
            changed[key] = replaced(child, values, (*path, key))
        return changed
    items = [replaced(child, values, (*path, place)) for place, child in enumerate(tree)]
    return tree._make(items) if hasattr(tree, "_make") else type(tree)(items)


def moved(tree: Any, device: torch.device) -> Any:
    """``tree`` with its tensors on ``device``; what is no tuple, list or dict of them moves itself, where it can."""
    if isinstance(tree, Tensor | tuple | list | dict):
        return replaced(tree, {path: tensor.to(device) for path, tensor in tensors(tree) if tensor.device != device})
    return tree.to(device) if callable(getattr(tree, "to", None)) else tree


def alike(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether the tensors of both are the same within ``tolerance`` of the largest element of each."""
    pairs = dict(tensors(found)), dict(tensors(expected))
    return pairs[0].keys() == pairs[1].keys() and all(_near(pairs[0][p], t, tolerance) for p, t in pairs[1].items())


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found is expected:
        return True
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if torch.equal(found, expected):
        return True
    if not expected.is_floating_point():
        return False
    error = (found.float() - expected.float()).abs().max()
    return bool(error <= tolerance * expected.float().abs().max())


@dataclass
class Call:
    """Arguments of one call.

    Attributes:
        arguments: By place, and by name.
    """

    arguments: tuple[tuple, dict]

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> "Call":
        """Without caches of keys and values, which would grow whenever the call is made again."""
        named = {name: _no_cache(value) for name, value in kwargs.items()}
        if "use_cache" in named:
            named["use_cache"] = False
        return cls((tuple(map(_no_cache, args)), named))

    def tensors(self) -> Iterator[tuple[Path, Tensor]]:
        return tensors(self.arguments)

    def at(self, path: Path) -> Any:
        return at(self.arguments, path)

    def with_values(self, values: dict[Path, Any]) -> "Call":
        return Call(replaced(self.arguments, values))

    def run(self, module: Callable) -> Any:
        args, kwargs = self.arguments
        return module(*args, **kwargs)

    def twin(self, copies: dict[int, Any]) -> "Call":
        """The call with its own copies of what blocks write into for later ones; ``copies`` are shared by all blocks."""

        def own(value: Any) -> Any:
            if not isinstance(value, (MutableMapping, list)):
                return value
            return copies.setdefault(id(value), copy.copy(value))

        args, kwargs = self.arguments
        if not any(isinstance(value, (MutableMapping, list)) for value in (*args, *kwargs.values())):
            return self
        return Call((tuple(map(own, args)), {name: own(value) for name, value in kwargs.items()}))


def _no_cache(value: Any) -> Any:
    """Nothing in place of a cache of transformers, which has had three names as an argument, also in a tuple."""
    if isinstance(value, (tuple, list)) and any(map(_is_cache, value)):
        return None
    return None if _is_cache(value) else value


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length")
