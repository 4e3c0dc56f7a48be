"""A tensor that is not computed: it knows its form and whose results it would take, and so does all that is made of it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class NotSkippable(Exception):
    """A forward needs elements of what it was to go without."""


class Skipped(Tensor):
    """In the place of a layer's result that a forward is to go without.

    Whatever a function makes of one is one, too, computed on its form alone: so what comes out as an ordinary tensor was
    made of ordinary ones. Elements that are asked for, or that are to be written into an ordinary tensor, raise.

    Attributes:
        sources: Of which layers' results it would be made.
        lies: On which device it would be.
    """

    sources: frozenset[int]
    lies: torch.device

    @staticmethod
    def of(form: Tensor, sources: Iterable[int], lies: torch.device) -> "Skipped":
        """In the form of ``form``, a tensor on the meta device."""
        made = form.as_subclass(Skipped)
        made.sources, made.lies = frozenset(sources), lies
        return made

    @classmethod
    def __torch_function__(cls, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return args[0].lies
        if func is F.dropout and not kwargs["training"]:
            return args[0]
        skipped = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Skipped)]
        sources = frozenset().union(*(one.sources for one in skipped))
        if _writes(func, kwargs):
            _note_written(args, kwargs, sources)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*tree_map(_form, args), **tree_map(_form, kwargs))
            return tree_map(lambda leaf: _wrapped(leaf, sources, skipped[0].lies), found)


def form_of(tensor: Tensor) -> Tensor:
    """A tensor without elements in the form of ``tensor``."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def is_known(tree: Any) -> bool:
    """Whether ``tree`` is made of tensors, in tuples, lists and dicts, and of nothing else that may hold some."""
    return all(type(leaf) in (Tensor, Skipped, int, float, bool, str, type(None)) for leaf in tree_leaves(tree))


def is_whole(tree: Any) -> bool:
    """Whether it is so of ordinary tensors alone."""
    return is_known(tree) and not any(isinstance(leaf, Skipped) for leaf in tree_leaves(tree))


def _form(leaf: Any) -> Any:
    if isinstance(leaf, Skipped):
        return leaf.as_subclass(Tensor)
    if isinstance(leaf, Tensor):
        return form_of(leaf)
    return torch.device("meta") if isinstance(leaf, torch.device) else leaf


def _wrapped(leaf: Any, sources: frozenset[int], lies: torch.device) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if not leaf.is_meta:
        raise NotSkippable
    return Skipped.of(leaf, sources, lies)


def _writes(func: Callable, kwargs: dict) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name in ("__setitem__", "__set__") or (name.startswith("__i") and name != "__invert__")
    return in_place or operator or "out" in kwargs or getattr(getattr(func, "_schema", None), "is_mutable", False)


def _note_written(args: tuple, kwargs: dict, sources: frozenset[int]) -> None:
    """What is written to must be skipped itself: an ordinary tensor would stay as it was."""
    for written in tree_leaves(kwargs["out"] if "out" in kwargs else args[0]):
        if not isinstance(written, Skipped):
            raise NotSkippable
        written.sources |= sources
