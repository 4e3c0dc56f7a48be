"""Which tokens of a forward are text and which fill rows up: the ranges of inputs follow the text alone.

A model says it by the ``attention_mask`` that it is called with, whoever calls it.
"""

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Of the forwards under way, the innermost last, bool ``[rows, tokens]``.
_masks = threading.local()


def _stack() -> list[Tensor | None]:
    if not hasattr(_masks, "stack"):
        _masks.stack = []
    return _masks.stack


@contextmanager
def text_of(mask: Tensor | None) -> Iterator[None]:
    """``mask``, bool ``[rows, tokens]``, says in the block which tokens are text; ``None`` says nothing."""
    _stack().append(mask)
    try:
        yield
    finally:
        _stack().pop()


def without_padding(x: Tensor) -> Tensor:
    """``x``, ``[rows, tokens, ...]`` or ``[rows * tokens, ...]``, with NaN in place of what is no text.

    Its other elements keep their places, so that nothing waits for the device. A tensor of another shape stays as it is.
    """
    if not x.is_floating_point():
        return x
    for mask in reversed(_stack()):
        if mask is None:
            continue
        for text in (mask, mask.flatten()):
            if x.dim() > text.dim() and x.shape[: text.dim()] == text.shape:
                padding = ~text.to(x.device).view(*text.shape, *[1] * (x.dim() - text.dim()))
                return x.masked_fill(padding, torch.nan)
    return x


def watch_masks(model: nn.Module) -> None:
    """Let the modules of ``model`` that take an ``attention_mask`` tell of it, also where its outermost is not called."""
    for module in model.modules():
        if "attention_mask" in inspect.signature(type(module).forward).parameters:
            module.register_forward_pre_hook(_begin, with_kwargs=True)
            module.register_forward_hook(_end, always_call=True)


def _begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
    mask = kwargs.get("attention_mask")
    if mask is None and args:
        names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        place = names.index("attention_mask")
        mask = args[place] if place < len(args) else None
    # Blocks get masks of another form, which say who sees whom.
    _stack().append(mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None)


def _end(_module: nn.Module, _args: tuple, _output: object) -> None:
    if _stack():
        _stack().pop()
