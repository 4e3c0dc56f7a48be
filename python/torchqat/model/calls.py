"""Whether a model's own forward calls every planned layer: what is read past its layer is trained in floating point."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import hooks
from torchqat.model.placement import is_moving

# What code asks a weight, or makes like it, without using its numbers, as in x.to(self.proj.weight.dtype).
_ABOUT = frozenset((
    "dtype", "device", "shape", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta", "layout", "grad", "is_leaf",
    "is_quantized", "size", "dim", "numel", "nelement", "stride", "is_floating_point", "is_contiguous", "data_ptr",
    "element_size", "storage_offset", "get_device", "is_complex", "__len__", "new_empty", "new_zeros", "new_ones",
    "new_full", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like",
))  # fmt: skip
# Of these the weight may be an argument after the first: what another tensor is made like.
_LIKE = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"])


@torch.no_grad()
def check_called(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]) -> list[str]:
    """Run the first batch in training and in evaluation mode, and see that every quantized layer is called.

    Buffers (running statistics) and random states are as they were afterwards.

    Args:
        model: A prepared model.
        batches: The first is run in evaluation mode and, where the model can be without more arguments, in training mode;
            the others until every layer was reached. An iterator is left where that was.
        forward: Runs one.

    Returns:
        Names of layers that no batch reached, where others of their kind were: experts of a mixture.

    Raises:
        UserError: A layer is not called although its weight is read, or not called at all (it and its parent are named).
    """
    layers = quant_layers(model)
    for _, layer in layers:
        layer.called = False
    # An embedding with a head's weight looks it up; that is no reading of the head's.
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    reads = _Reads([layer for _, layer in layers if not isinstance(layer, QuantExperts)], tables)
    index = -1
    with _as_it_was(model), _eagerly(model), reads.own_calls(), reads:
        for index, batch in enumerate(batches):
            for training in (False, True) if index == 0 else (False,):
                model.train(training)
                try:
                    forward(model, batch)
                except Exception:
                    if not training:
                        raise
                    break  # it wants targets then, or more than one row: its own code says so when it is trained
                _check_read(model, layers, reads.found, training)
            if all(layer.called for _, layer in layers):
                break
    return _not_reached(model, layers, {name for name, layer in layers if layer.called}) if index >= 0 else []


@contextmanager
def checked_calls(model: nn.Module, names: list[str]) -> Iterator[None]:
    """See that what runs meanwhile calls the layers ``names`` of a float model, and leaves their weights to them.

    Raises:
        UserError: As ``check_called``, when it has run.
    """
    layers, called = [(name, model.get_submodule(name)) for name in names], set()
    reads = _Reads([layer for _, layer in layers])
    notes = [layer.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, layer in layers]
    with hooks(notes), reads.own_calls(), reads:
        yield
    _check_read(model, layers, reads.found, training=False)
    _not_reached(model, layers, called)


def calls_note(model: nn.Module, when: str) -> str:
    """A sentence that names a quantized layer which no forward called so far, though its neighbours were; else empty.

    Neighbours are layers of the same module: those of another may be in a compiled graph, which leaves no sign of a call.
    ``when`` says since when, as in ``before the first step``.
    """
    layers = quant_layers(model)
    called = [name for name, layer in layers if layer.called]
    parents = {name.rpartition(".")[0] for name in called}
    for name, layer in layers:
        is_missed = not layer.called and name.rpartition(".")[0] in parents
        if is_missed and not any(same_place(model, name, other) for other in called):
            return (
                f"{name} was not called {when}, though other layers of {_parent(model, name)} were: what "
                "is not called trains in floating point, and is exported rounded."
            )
    return ""


def same_place(module: nn.Module, name: str, other: str) -> bool:
    """Whether two layers of ``module`` are at the same place of two modules in one list or dict, as those of experts are."""
    parts, others = name.split("."), other.split(".")
    differing = [index for index, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b]
    if len(parts) != len(others) or len(differing) != 1:
        return False
    container = module.get_submodule(".".join(parts[: differing[0]]))
    return isinstance(container, nn.ModuleList | nn.ModuleDict)


def _check_read(model: nn.Module, layers: list, reads: set[int], training: bool) -> None:
    for name, layer in layers:
        if id(layer.weight) in reads:
            raise UserError(
                f"{_parent(model, name)} must leave the weight of {name} to that layer's own forward for it to be "
                f"quantized, but reads it by itself in {'training' if training else 'evaluation'} mode; leave it by a rule "
                "with weight: float."
            )


def _not_reached(model: nn.Module, layers: list, called: set[str]) -> list[str]:
    missed = [name for name, _ in layers if name not in called]
    for name in missed:
        if not any(same_place(model, name, other) for other in called):
            raise UserError(
                f"{_parent(model, name)} must call {name} for it to be quantized, but the model's forward never calls it; "
                "leave it by a rule with weight: float."
            )
    return missed


def _parent(model: nn.Module, name: str) -> str:
    place = name.rpartition(".")[0]
    kind = type(model.get_submodule(place)).__name__
    return f"{kind} ({place})" if place else kind


class _Reads(TorchFunctionMode):
    """Notes whose weight is given to a function of torch outside of the layers' own calls.

    Args:
        layers: Whose weights.
        others: What may use these as well.

    Attributes:
        found: The ``id`` of each such weight.
    """

    def __init__(self, layers: list[nn.Module], others: Iterable[nn.Module] = ()):
        super().__init__()
        self.found: set[int] = set()
        self._calls, self._inside = list(dict.fromkeys([*layers, *others])), 0
        self._weights = [layer.weight for layer in layers]  # held, or another tensor could come to have its id
        self._watched = {id(weight) for weight in self._weights}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if torch.compiler.is_compiling():  # a part of the model that compiles itself: its graph is of what it was given
            return function(*args, **(kwargs or {}))
        if not self._inside and not is_moving() and not _is_about(function):
            own = args[:1] if getattr(function, "__name__", "") in _LIKE else (args, kwargs or {})
            self.found |= {id(leaf) for leaf in tree_leaves(own)} & self._watched
        return function(*args, **(kwargs or {}))

    @contextmanager
    def own_calls(self) -> Iterator[None]:
        """While it is in force, what layers do in their own forward is left out."""

        def enter(*_):
            self._inside += 1

        def leave(*_):
            self._inside -= 1

        handles = [layer.register_forward_pre_hook(enter, prepend=True) for layer in self._calls]
        handles += [layer.register_forward_hook(leave, always_call=True) for layer in self._calls]
        with hooks(handles):
            yield


def _is_about(function) -> bool:
    name = getattr(function, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    return name in _ABOUT


def _eagerly(model: nn.Module) -> AbstractContextManager:
    """Modules that are compiled run as they are written: a graph leaves no sign of what it calls."""
    is_compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Modes, buffers and random states are put back."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, None if buffer is None or buffer.is_meta else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # in whose place a forward may have put another
                if before is not None:
                    buffer.copy_(before)
