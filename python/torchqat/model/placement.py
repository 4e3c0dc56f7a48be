"""A model on a device for a while: whole or, where it is larger than that has room for, one block after the other."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.device import CPU, device_of, find_device
from torchqat.errors import UserError
from torchqat.layers.packed_linear import PackedLinear
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import is_sharded
from torchqat.model.blocks import block_lists, hooks

# Of the memory that is free, to the weights of a model; the rest is for what it computes.
_SHARE = 0.6
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv1d, QuantLayer)


class Placed:
    """A model that computes on ``device``.

    Attributes:
        device: Where its inputs go.
        kept: Where what is kept between blocks goes: the host, where the model's blocks are kept there.
    """

    def __init__(self, device: torch.device, kept: torch.device | None = None):
        self.device, self.kept = device, kept or device

    def hold(self, module: nn.Module) -> AbstractContextManager:
        """The block ``module`` there for a while, whatever is called and however often."""
        return nullcontext()


@contextmanager
def on_device(model: nn.Module, device: torch.device | None = None, by_blocks: bool | None = None) -> Iterator[Placed]:
    """``model`` on ``device``, and back where it was when the block ends.

    A model that processes hold parts of stays as it is.

    Args:
        model: Any; its parameters stay the same objects.
        device: Where it is now, when ``None``.
        by_blocks: Move each of its repeated blocks when it is called, and back after, so that one of them is there at a
            time; when ``None``, where it takes more than 60 % of the memory that is free there. A model without such is
            moved whole.

    Raises:
        UserError: Its parameters lie on several devices, or it is packed, and ``device`` is given and another.
    """
    home = device_of(model)
    if device is None or is_sharded(model) or _is_all_on(model, device):
        yield Placed(home)
        return
    _check_moves(model, device)
    blocks = _blocks(model) if device.type != "cpu" else []
    by_blocks = not _fits(model, device) if by_blocks is None else by_blocks
    if by_blocks and blocks:
        with _ByBlocks(model, blocks, home, device) as placed:
            yield placed
        return
    try:
        yield Placed(_moved(model, device))
    finally:
        model.to(home)


def _moved(model: nn.Module, device: torch.device) -> torch.device:
    model.to(device)
    return device


def device_for(
    asked: str | torch.device, models: Iterable[nn.Module], say: Callable[[str], None] = warnings.warn
) -> torch.device:
    """As ``find_device`` finds it; ``auto`` is the CPU where the weights of a model are packed."""
    packed = any(isinstance(module, PackedLinear) for model in models for module in model.modules())
    return CPU if packed and str(asked) == "auto" else find_device(asked, say)


def weightless(forward: Callable) -> Callable:
    """``forward`` in place of a block's own, which does without its weights: they are not moved for it."""
    forward.weightless = True
    return forward


_moves = ContextVar("moves", default=False)


@contextmanager
def _moving() -> Iterator[None]:
    token = _moves.set(True)
    try:
        yield
    finally:
        _moves.reset(token)


def is_moving() -> bool:
    """Whether a block is just being moved: who watches what weights are given to is not meant then."""
    return _moves.get()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _is_all_on(model: nn.Module, device: torch.device) -> bool:
    return all(tensor.device == device for tensor in _tensors(model))


def _check_moves(model: nn.Module, device: torch.device) -> None:
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise UserError(f"device must be cpu for a model on packed weights, which runs there alone, but is {device}.")
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(places) > 1:
        raise UserError(
            f"The model must lie on one device to be moved to {device}, but lies on {' and '.join(places)}; without device "
            "it is used where it lies."
        )


def _fits(model: nn.Module, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    needed = sum(tensor.nbytes for tensor in {id(t): t for t in _tensors(model)}.values())
    return needed <= _SHARE * torch.cuda.mem_get_info(device)[0]


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks that share no tensor with what lies outside them."""
    found = {id(block): block for blocks in block_lists(model, _LAYERS) for _, block in blocks}
    inside = {id(module) for block in found.values() for module in block.modules()}
    outside = {
        id(tensor)
        for module in model.modules()
        if id(module) not in inside
        for tensor in chain(module._parameters.values(), module._buffers.values())
    }
    return [block for block in found.values() if not any(id(tensor) in outside for tensor in _tensors(block))]


class _ByBlocks(Placed):
    """Blocks on the host, each moved to the device while it is called or held; the rest is there all the time."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module], home: torch.device, device: torch.device):
        super().__init__(device, home)
        self._model, self._blocks, self._home = model, blocks, home
        self._uses = {id(block): 0 for block in blocks}
        self._on_host: dict[int, dict[int, tuple[Tensor, int]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "_ByBlocks":
        inside = {id(module) for block in self._blocks for module in block.modules()}
        try:
            for module in self._model.modules():
                if id(module) not in inside:
                    module._apply(lambda tensor: tensor.to(self.device), recurse=False)
            self._stack.enter_context(hooks(self._hooks()))
        except BaseException:
            self._model.to(self._home)
            raise
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()
        self._model.to(self._home)

    def _hooks(self) -> list:
        # Functions, not methods, which would be copied with a block. A copy is none of the model's, and stays where it is.
        def enter(module: nn.Module, _args: tuple) -> None:
            if self._needs_weights(module):
                self._begin(module)

        def leave(module: nn.Module, _args: tuple, _output: Any) -> None:
            if self._needs_weights(module):
                self._end(module)

        found = [block.register_forward_pre_hook(enter, prepend=True) for block in self._blocks]
        return found + [block.register_forward_hook(leave, always_call=True) for block in self._blocks]

    def _needs_weights(self, module: nn.Module) -> bool:
        return id(module) in self._uses and not hasattr(vars(module).get("forward"), "weightless")

    @contextmanager
    def hold(self, module: nn.Module) -> Iterator[None]:
        if id(module) not in self._uses:
            yield
            return
        self._begin(module)
        try:
            yield
        finally:
            self._on_host[id(module)] = {}  # its weights may be others
            self._end(module)

    def _begin(self, module: nn.Module) -> None:
        self._uses[id(module)] += 1
        if self._uses[id(module)] == 1:
            with _moving():
                before = [(parameter, parameter.data) for parameter in module.parameters()]
                module.to(self.device)
                self._on_host[id(module)] = {id(p): (data, p._version) for p, data in before}

    def _end(self, module: nn.Module) -> None:
        self._uses[id(module)] -= 1
        if self._uses[id(module)] == 0:
            kept = self._on_host.pop(id(module))

            def back(tensor: Tensor) -> Tensor:
                """What was not written since lies on the host already."""
                data, version = kept.get(id(tensor), (None, None))
                return data if data is not None and version == tensor._version else tensor.to(self._home)

            with _moving():
                module._apply(back)
