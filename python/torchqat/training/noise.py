"""What adds noise to a model in training alone: dropout, stochastic depth, layers left out, jitter of routers."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import hooks

# A module may draw for several reasons, and those around it once it is still; no model has so many.
_ROUNDS = 16


def remove_dropout(model: nn.Module) -> None:
    """Set every probability of dropout in ``model`` to 0: of modules, and those that attention layers keep as numbers."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


def find_noise(model: nn.Module, forward: Callable[[], Any]) -> list[str]:
    """The modules of ``model`` that draw random numbers in training mode but not in evaluation mode, by name.

    That is not looked up but seen in ``forward``; what it draws is put back afterwards, quantized layers observe nothing
    and each module ends in the mode that it was in. Only a module itself, not those inside it, need be in evaluation mode
    to be still.

    Args:
        model: In training mode, without dropout.
        forward: Runs it.

    Raises:
        UserError: One draws in evaluation mode, too.
    """
    names = {id(module): name for name, module in model.named_modules()}
    modes = [(module, module.training) for module in model.modules()]
    still: list[nn.Module] = []
    try:
        with torch.no_grad(), _as_it_was(), torch.compiler.set_stance("force_eager"):
            for _, layer in quant_layers(model):
                layer.eval()
            for _ in range(_ROUNDS):
                drawing = _drawing(model, forward)
                if not drawing:
                    return [names[id(module)] for module in still]
                for module in drawing:
                    if not module.training:
                        raise UserError(_cannot_be_still(names[id(module)]))
                    module.training = False
                    still.append(module)
            raise UserError(_cannot_be_still(names[id(still[-1])]))
    finally:
        for module, mode in modes:
            module.training = mode


def _cannot_be_still(name: str) -> str:
    return (
        f"{name or 'The model'} draws random numbers that cannot be switched off, so its distance to the float model is no "
        "loss to train with; set distill.loss: cross_entropy."
    )


def _drawing(model: nn.Module, forward: Callable[[], Any]) -> list[nn.Module]:
    """The modules that draw random numbers outside the modules inside them, as far as these are still."""
    found: dict[int, nn.Module] = {}
    open_calls: list[list] = []  # of each call: what the generators were, and whether a module inside drew

    def begin(_module: nn.Module, _args: tuple) -> None:
        open_calls.append([_generators(), False])

    def end(module: nn.Module, _args: tuple, _output: Any) -> None:
        before, inside = open_calls.pop()
        drew = _generators() != before
        if drew and not inside:
            found[id(module)] = module
        if drew and open_calls:
            open_calls[-1][1] = True

    handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
    handles += [module.register_forward_hook(end) for module in model.modules()]
    with hooks(handles):
        forward()
    return list(found.values())


def _generators() -> tuple:
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    numpy = np.random.get_state()
    return (*(state.numpy().tobytes() for state in states), random.getstate(), numpy[1].tobytes(), numpy[2])


@contextmanager
def _as_it_was() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
