"""``qat_step``: how many optimizer steps a model's widths have followed, in its state from ``prepare`` on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakMethod

import torch
from torch import nn

STEP = "qat_step"


def count_steps(model: nn.Module) -> None:
    """Give ``model`` the buffer ``qat_step``, int64, at 0, and let it load states that have none."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.register_buffer(STEP, torch.zeros((), dtype=torch.int64, device=device))
    model.register_load_state_dict_post_hook(Loaded())


def counting(model: nn.Module) -> list[nn.Module]:
    """The modules of ``model``, itself among them, that have the buffer."""
    return [module for module in model.modules() if STEP in module._buffers]


def stop_counting(model: nn.Module) -> None:
    """Take the buffer away again: of a model that is not trained any more."""
    for module in counting(model):
        del module._buffers[STEP]


def follow(model: nn.Module, follower: Callable[[], None], replaced: Callable[[], None]) -> None:
    """Call ``follower`` when a state was loaded into ``model``, and ``replaced`` when another one takes its place.

    Args:
        model: Has the buffer.
        follower: A method, whose object is not kept alive; copies and pickles of ``model`` have none.
        replaced: Of the same object.
    """
    hook = next(hook for hook in model._load_state_dict_post_hooks.values() if isinstance(hook, Loaded))
    hook.hand_to(WeakMethod(follower), WeakMethod(replaced))


class Loaded:
    """What happens after a state was loaded."""

    def __init__(self):
        self._follower: WeakMethod | None = None
        self._replaced: WeakMethod | None = None

    def __reduce__(self):
        return Loaded, ()

    def hand_to(self, follower: WeakMethod, replaced: WeakMethod) -> None:
        if (tell := self._replaced and self._replaced()) is not None:
            tell()
        self._follower, self._replaced = follower, replaced

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        missing = [name for name in incompatible.missing_keys if name.rpartition(".")[2] == STEP]
        for name in missing:
            incompatible.missing_keys.remove(name)  # of a float model, or of a state from before prepare counted
        if not missing:
            module.qat_awaits_calibration = False  # it is in what was loaded
        _await_calibration(module)
        if (follower := self._follower and self._follower()) is not None:
            follower()


def _await_calibration(model: nn.Module) -> None:
    """Say so where weights were loaded into ``model`` that are not those which its calibration rounded."""
    lost = [layer for layer in model.modules() if getattr(layer, "lost_lattice", False)]
    for layer in lost:
        layer.lost_lattice = False
    if not lost:
        return
    model.qat_awaits_calibration = True
    logging.getLogger("torchqat").warning(
        f"The weights that were loaded are not those that initialize.method {model.qat_initialize.method} has rounded: "
        f"scales of {len(lost)} layers were chosen anew, so call torchqat.calibrate again."
    )
