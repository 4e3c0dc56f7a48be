"""Blocks that save nothing in the forward pass, and are run once more, wherever their weights then are, for the backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.blocks import block_lists
from torchqat.model.placement import Placed
from torchqat.ptq.calls import Call, replaced, tensors


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of ``model``, each once."""
    lists = block_lists(model, (nn.Linear, QuantLayer))
    return list({id(block): block for blocks in lists for _, block in blocks}.values())


def rerun(block: nn.Module, placed: Placed, autocast: AbstractContextManager) -> Callable:
    """What to put in the place of ``block.forward``."""
    own = block.forward

    def forward(*args, **kwargs) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        call = Call.of(args, kwargs)
        entering = {path: tensor for path, tensor in call.tensors() if tensor.is_floating_point()}
        once = _Once(own, block, placed, autocast, call.with_values(dict.fromkeys(entering)), list(entering))
        anchor = torch.zeros((), requires_grad=True)  # or a block that no gradient enters would be left out
        leaving = _Rerun.apply(once, anchor, *entering.values())
        return replaced(once.given, dict(zip(once.leaving, leaving, strict=True)))

    return forward


class _Once:
    """One call of a block, to be made again."""

    def __init__(
        self, own: Callable, block: nn.Module, placed: Placed, autocast: AbstractContextManager, call: Call, paths: list
    ):
        self._own, self._block, self._placed, self._autocast = own, block, placed, autocast
        self._call, self._paths = call, paths
        self.given: Any = None
        self.leaving: list = []

    def run(self, entering: tuple[Tensor, ...]) -> dict:
        with self._autocast:
            given = self._call.with_values(dict(zip(self._paths, entering, strict=True))).run(self._own)
        leaving = {path: tensor for path, tensor in tensors(given) if tensor.is_floating_point()}
        if not self.leaving:
            self.given, self.leaving = replaced(given, dict.fromkeys(leaving)), list(leaving)
        return leaving

    def held(self) -> AbstractContextManager:
        return self._placed.hold(self._block)


class _Rerun(torch.autograd.Function):
    @staticmethod
    def forward(ctx, once: _Once, _anchor: Tensor, *entering: Tensor) -> tuple[Tensor, ...]:
        ctx.once = once
        ctx.save_for_backward(*entering)
        return tuple(once.run(entering).values())

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple:
        again = tuple(tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with ctx.once.held(), torch.enable_grad():
            leaving = ctx.once.run(again).values()
            pairs = [(out, g) for out, g in zip(leaving, gradients, strict=True) if g is not None and out.requires_grad]
            if pairs:
                torch.autograd.backward(*map(list, zip(*pairs, strict=True)))
        return None, None, *(tensor.grad for tensor in again)
