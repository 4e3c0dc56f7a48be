"""A model as a row of blocks, so that only one of them, and the tokens between two, need be held at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from torchqat.layers.kv_cache import without_quantization
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.blocks import find_blocks

Forward = Callable[[nn.Module, Any], Any]


class Stop(Exception):
    """Raised in a hook once it has what the forward was run for."""


@dataclass
class Block:
    """One block and what it is called with.

    Attributes:
        name: Its module name; empty when the whole model is the block.
        module: The block.
        calls: Per batch, the positional arguments after the hidden states, and the named ones.
    """

    name: str
    module: nn.Module
    calls: list[tuple[tuple, dict]] = field(default_factory=list)

    def layers(self) -> list[tuple[str, QuantLayer]]:
        """Its quantized layers with their full names."""
        prefix = f"{self.name}." if self.name else ""
        return [(prefix + name, layer) for name, layer in quant_layers(self.module)]

    def run(self, batch: int, hidden: Any, module: nn.Module | None = None) -> Tensor:
        """Its output for ``hidden``; of ``module`` in its place where one is given."""
        args, kwargs = self.calls[batch]
        output = (module or self.module)(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


class WholeModel(Block):
    """A model without blocks: ``hidden`` is the user's batch."""

    def __init__(self, model: nn.Module, forward: Forward):
        super().__init__("", model)
        self.forward = forward

    def run(self, batch: int, hidden: Any, module: nn.Module | None = None) -> Any:
        return self.forward(module or self.module, hidden)


def open_blocks(
    model: nn.Module, batches: list[Any], forward: Forward, kind: type[nn.Module] = QuantLayer
) -> tuple[list[Block], list[Any]]:
    """The blocks of ``model``, ready to run, and what enters the first of them for each batch.

    The arguments of every block are those that the model itself calls it with: each batch goes through the model once
    with its blocks replaced by recorders.
    """
    blocks = [Block(name, module) for name, module in find_blocks(model, kind)]
    if not blocks:
        return [WholeModel(model, forward)], list(batches)
    hidden: list[Tensor] = []
    for batch in batches:
        with _recorders(blocks, hidden), suppress(Stop):
            forward(model, batch)
    return blocks, hidden


@contextmanager
def _recorders(blocks: list[Block], hidden: list[Tensor]) -> Iterator[None]:
    def recorder(index: int):
        def record(*args, **kwargs):
            state, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            blocks[index].calls.append((tuple(map(_no_cache, rest)), _without_cache(kwargs)))
            if index == 0:
                hidden.append(state.detach())
            if index + 1 == len(blocks):
                raise Stop
            return state

        return record

    with _forwards(blocks, [recorder(index) for index in range(len(blocks))]):
        yield


@contextmanager
def shortcut(blocks: list[Block], hidden: Tensor | None) -> Iterator[None]:
    """Lets a model skip ``blocks``, its first ones, the last of which gives ``hidden``."""

    def through(*args, **kwargs):
        return args[0] if args else kwargs["hidden_states"]

    with _forwards(blocks, [through] * (len(blocks) - 1) + [lambda *args, **kwargs: hidden] * bool(blocks)):
        yield


@contextmanager
def _forwards(blocks: list[Block], forwards: list[Callable]) -> Iterator[None]:
    own = [vars(block.module).get("forward") for block in blocks]  # what others have put there already
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.module.forward = forward
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.module.forward
            if forward is not None:
                block.module.forward = forward


def _without_cache(kwargs: dict) -> dict:
    """Blocks are run many times; a cache of keys and values would grow with each."""
    kept = {name: _no_cache(value) for name, value in kwargs.items()}
    return {**kept, "use_cache": False} if "use_cache" in kept else kept


def _no_cache(value: Any) -> Any:
    """Nothing in place of a cache of transformers, which has had three names as an argument."""
    return None if hasattr(value, "get_seq_length") else value


@contextmanager
def in_floating_point(module: nn.Module) -> Iterator[None]:
    """Its quantized layers and caches as they would be without quantization."""
    layers = [(layer, layer.weight_bits, layer.input_bits) for _, layer in quant_layers(module)]
    try:
        for layer, _, _ in layers:
            layer.set_bits(0, 0, derive=False)
        with without_quantization(module):
            yield
    finally:
        for layer, weight_bits, input_bits in layers:
            layer.set_bits(weight_bits, input_bits, derive=False)
