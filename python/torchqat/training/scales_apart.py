"""Learned scales among the weights of an ordinary optimizer, such as the one that a trainer makes itself."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from torchqat.errors import UserError
from torchqat.layers.quant_layer import SCALE_NAMES


class ScalesApart:
    """Lets an optimizer move learned scales as it would in groups of ``parameter_groups``, whatever groups it was made of.

    In each step they are in groups of their own; before and after it they are where they were, so that schedulers of rates
    and checkpoints find the groups that they know.

    Args:
        optimizer: Its groups that say nothing of ``relative`` are looked at.
        model: Whose scales.
        rate: The recipe's ``train.scale_learning_rate``, which goes along with the rate of the group that they are in.

    Attributes:
        names: Of the scales that were found.

    Raises:
        UserError: ``optimizer`` has no rate for a group of parameters, or moves them by another one inside of it, whose
            groups are not its own.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, rate: float):
        self._rate, self._whole = rate, None
        named = ((name, id(parameter)) for name, parameter in model.named_parameters())
        self._names = {key: name for name, key in named if name.rpartition(".")[2] in SCALE_NAMES}
        found = self._found(optimizer)
        self.names = [self._names[id(scale)] for _, scale in found]
        if found and (isinstance(optimizer, LBFGS) or any(group["lr"] is None for group, _ in found)):
            raise UserError(
                f"An optimizer must have a rate for each group to move learned scales ({self.names[0]}; {len(found)} in "
                f"all), but {type(optimizer).__name__} has none; make another of torchqat.parameter_groups(model, recipe)."
            )
        if found and _groups_inside(optimizer):
            raise UserError(
                f"{type(optimizer).__name__} moves parameters by an optimizer inside of it, whose groups are others, and "
                f"has learned scales ({self.names[0]}; {len(found)} in all) among weights; make it of "
                "torchqat.parameter_groups(model, recipe)."
            )
        for group, _ in found:
            _note_peak(group)

    def relative(self, optimizer: Optimizer) -> list[Tensor]:
        """Those whose rates are relative to their size, in the order of their groups in a step."""
        return [scale for _, scale in self._found(optimizer) if self._is_relative(scale)]

    def take(self, optimizer: Optimizer) -> None:
        """Into groups of their own, after all others."""
        found = self._found(optimizer)
        if not found:
            return
        self._whole = optimizer.param_groups, [(group, group["params"]) for group in optimizer.param_groups]
        for group, _ in found:
            _note_peak(group)
        own = [
            {**group, "params": [s], "lr": self._rate_in(group), "weight_decay": 0.0, "relative": self._is_relative(s)}
            for group, s in found
        ]
        for group, _ in found:
            # The same dictionary, in which some optimizers count.
            group["params"] = [p for p in group["params"] if id(p) not in self._names]
        optimizer.param_groups.extend(own)  # the same list, which an optimizer inside of this one may have, too

    def put_back(self, optimizer: Optimizer) -> None:
        """After ``take``; else nothing."""
        if self._whole is not None:
            groups, parameters = self._whole
            del groups[len(parameters) :]
            for group, those in parameters:
                group["params"] = those
            self._whole = None

    def _found(self, optimizer: Optimizer) -> list[tuple[dict[str, Any], Tensor]]:
        ordinary = [group for group in optimizer.param_groups if "relative" not in group]
        return [(group, p) for group in ordinary for p in group["params"] if id(p) in self._names]

    def _is_relative(self, scale: Tensor) -> bool:
        """Zero points are in levels."""
        return self._names[id(scale)].endswith("scale")

    def _rate_in(self, group: dict[str, Any]) -> float | Tensor:
        """Warms up and falls with the group's own."""
        peak = group["peak_lr"]
        return self._rate * (group["lr"] / peak) if isinstance(peak, Tensor) or peak else 0.0


def _note_peak(group: dict[str, Any]) -> None:
    """Keep the highest rate of ``group`` that is known in it, for checkpoints. One set by hand may begin at zero, and that
    of ``CyclicLR`` at its lowest."""
    rate = group["lr"]
    keys = ("max_lr",) if "max_lr" in group else ("initial_lr", "peak_lr")  # OneCycleLR's, whatever was there before
    known = [group[key] for key in keys if key in group]
    if isinstance(rate, Tensor):  # on a GPU nothing waits for it
        peak = rate.clamp(min=torch.finfo(rate.dtype).tiny)
        for other in known:
            peak = peak.maximum(torch.as_tensor(other, dtype=rate.dtype, device=rate.device))
        group["peak_lr"] = peak
    else:
        group["peak_lr"] = max([rate, *map(float, known)])


def _groups_inside(optimizer: Optimizer) -> bool:
    """Whether it holds an optimizer with a list of groups of its own, as that of ZeRO in torch does."""
    inside = (value for value in vars(optimizer).values() if isinstance(value, Optimizer))
    return any(other.param_groups is not optimizer.param_groups for other in inside)
