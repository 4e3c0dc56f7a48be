"""A model's blocks, each run on what the block before it gives, so that only one of them need be held at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.layers.kv_cache import without_quantization
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.placement import weightless
from torchqat.ptq.calls import Call, Path, at, moved, replaced, tensors

Forward = Callable[[nn.Module, Any], Any]


class Stop(Exception):
    """Raised in a hook once it has what the forward was run for."""


@dataclass
class Block:
    """One block and what it is called with.

    Attributes:
        name: Its module name; empty when the whole model is the block.
        module: The block.
        calls: Its calls, without what ``links`` say; as a rule one per batch.
        twins: The same for its float copy.
        links: Which arguments are not its own but in what enters it, and where there: what the block before it gave, or
            its recorded hidden states where it is the first of its row.
        hidden: Which argument its hidden states are.
        given: What it gave on the batch that it was tried on, without elements.
        passed: Which of that have the form of an argument, and of which.
        looped: Whether one forward of the model runs it several times.
        shared: The ``id`` of each of its modules that the model has in another place as well, so that what it is given
            here is not all that it is given.
        repeated: Layers that one call runs several times, those together that are given the same the first time.
        device: Where it is run, and what enters it goes; where that is, when ``None``.
    """

    name: str
    module: nn.Module
    calls: list[Call] = field(default_factory=list)
    twins: list[Call] = field(default_factory=list)
    links: dict[Path, Path] = field(default_factory=dict)
    hidden: Path | None = None
    given: Any = None
    passed: dict[Path, Path] = field(default_factory=dict)
    looped: bool = False
    shared: set[int] = field(default_factory=set)
    repeated: list[list[tuple[str, QuantLayer]]] = field(default_factory=list)
    device: torch.device | None = None

    def layers(self) -> list[tuple[str, QuantLayer]]:
        """Its quantized layers with their full names."""
        prefix = f"{self.name}." if self.name else ""
        return [(prefix + name, layer) for name, layer in quant_layers(self.module)]

    def own_layers(self) -> list[tuple[str, QuantLayer]]:
        """Those of its layers that are nowhere else in the model."""
        return [(name, layer) for name, layer in self.layers() if id(layer) not in self.shared]

    def call(self, index: int, entering: Any, twin: bool = False) -> Call:
        """Its call ``index`` with what enters it; as the float model makes it with ``twin``."""
        values = {place: self.here(at(entering, path)) for place, path in self.links.items()}
        return (self.twins if twin else self.calls)[index].with_values(values)

    def here(self, entering: Any) -> Any:
        """What was kept elsewhere, where the block is run."""
        return entering if self.device is None else moved(entering, self.device)

    def make(self, call: Call, module: nn.Module | None = None) -> Any:
        return call.run(module or self.module)

    def run(self, index: int, entering: Any, module: nn.Module | None = None) -> Any:
        """All that it gives for what enters it in call ``index``; its float copy ``module`` in its place where given."""
        return self.make(self.call(index, entering, module is not None), module)

    def keep(self, call: Call, copies: dict[int, Any]) -> None:
        """Note ``call`` for later, ``copies`` being those of the same forward."""
        own = call.with_values(dict.fromkeys(self.links))
        self.calls.append(own)
        self.twins.append(own.twin(copies))

    def forget_calls(self) -> None:
        self.calls.clear()
        self.twins.clear()

    def placeholder(self, call: Call) -> Any:
        """Something in the form of what it gives, without running it."""
        return replaced(self.given, {path: call.at(place) for path, place in self.passed.items()})


class WholeModel(Block):
    """A model without blocks: what enters it is the user's batch."""

    def __init__(self, model: nn.Module, forward: Forward):
        super().__init__("", model, hidden=(0, 0))
        self.forward = forward

    def call(self, index: int, entering: Any, twin: bool = False) -> Call:
        return Call(((entering,), {}))

    def make(self, call: Call, module: nn.Module | None = None) -> Any:
        return self.forward(module or self.module, call.at(self.hidden))


@contextmanager
def shortcut(blocks: list[Block], given: Any) -> Iterator[None]:
    """Lets a model skip ``blocks``, its first ones, the last of which gives ``given``."""
    if not blocks:
        yield
        return

    def through(block: Block):
        return weightless(lambda *args, **kwargs: block.placeholder(Call((args, kwargs))))

    last = weightless(lambda *args, **kwargs: blocks[-1].here(given))
    with forwards(blocks, [*map(through, blocks[:-1]), last]):
        yield


@contextmanager
def forwards(blocks: list[Block], others: list[Callable]) -> Iterator[None]:
    """``others`` in place of the forwards of ``blocks``."""
    with forwards_of([block.module for block in blocks], others):
        yield


@contextmanager
def forwards_of(modules: list[nn.Module], others: list[Callable]) -> Iterator[None]:
    """``others`` in place of the forwards of ``modules``."""
    own = [vars(module).get("forward") for module in modules]  # what others have put there already
    try:
        for module, forward in zip(modules, others, strict=True):
            module.forward = forward
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def without_elements(given: Any) -> Any:
    """``given`` with tensors of the same form that take no memory."""
    zeros = {path: torch.zeros((), dtype=t.dtype, device=t.device).expand(t.shape) for path, t in tensors(given)}
    return replaced(given, zeros)


def same_form(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


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


@contextmanager
def keeping_no_caches(model: nn.Module) -> Iterator[None]:
    """Models of transformers whose callers do not say otherwise keep neither keys and values nor states of recurrence."""
    configs = {
        id(c): c for m in model.modules() if getattr(c := getattr(m, "config", None), "use_cache", False) is True
    }
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
