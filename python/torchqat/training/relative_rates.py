"""Rates of learned scales that are relative to their size, under any optimizer, without waiting for a device."""

from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from torchqat.layers.sharded import local
from torchqat.training.reading import OnTheWay
from torchqat.training.scales_apart import ScalesApart

# Of the optimizers whose steps multiply the rates of relative groups.
_known: "WeakKeyDictionary[Optimizer, RelativeRates]" = WeakKeyDictionary()


class RelativeRates:
    """Lets every step of an optimizer use the rates of its relative groups, which are one scale each, times the mean
    magnitude of that scale.

    Those of scales among other parameters, too, which ``apart`` takes out of there for the step.

    An optimizer needs numbers of the host. Those who know when scales have their last value before a step send the sums
    ahead (``send``) or read them with others (``sums``, ``give``); else the step itself reads them.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = ref(optimizer)  # which has this in its hooks
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._sent: tuple[list[int], OnTheWay] | None = None
        self._given: list[float] | None = None
        self._read_elsewhere = False
        self.apart: ScalesApart | None = None
        optimizer.register_step_pre_hook(self._multiply)
        optimizer.register_step_post_hook(self._put_back)
        optimizer.register_state_dict_pre_hook(self._put_back)  # after a step that failed, as before another one

    def send(self) -> None:
        """Send the sums ahead, on a GPU; scales that are written to before the step are read again."""
        scales = self._scales()
        if scales and _sends(scales[0]) and not self._read_elsewhere:
            self._sent = _versions(scales), OnTheWay(_sums(scales))

    def sums(self) -> Tensor:
        """Float64, of the magnitudes of each relative group's scale; who reads them has to ``give`` them before the step."""
        self._read_elsewhere = True
        scales = self._scales()
        return _sums(scales) if scales else torch.zeros(0, dtype=torch.float64)

    def give(self, sums: list[float]) -> None:
        self._given = sums

    def _known_sums(self, scales: list[Tensor]) -> list[float]:
        (given, self._given), (sent, self._sent) = (self._given, None), (self._sent, None)
        if given is not None:
            return given
        if sent is not None and sent[0] == _versions(scales):
            return sent[1].get()
        return _sums(scales).cpu().tolist()

    @torch.no_grad()
    def _multiply(self, *_) -> None:
        self._put_back()
        scales = self._scales()
        if self.apart is not None:
            self.apart.take(self._optimizer())
        if not scales:
            return
        self._rates.extend((group, group["lr"]) for group in self._groups())
        for (group, rate), scale, size in zip(self._rates, scales, self._known_sums(scales), strict=True):
            group["lr"] = rate * max(size / scale.numel(), 1e-8)

    def _put_back(self, *_) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates.clear()
        if self.apart is not None:
            self.apart.put_back(self._optimizer())

    def _groups(self) -> list[dict[str, Any]]:
        return [group for group in self._optimizer().param_groups if group.get("relative")]

    def _scales(self) -> list[Tensor]:
        apart = self.apart.relative(self._optimizer()) if self.apart is not None else []
        return [group["params"][0] for group in self._groups()] + apart


def multiply_relative_rates(optimizer: Optimizer) -> RelativeRates:
    """``RelativeRates`` of ``optimizer``, which has them once."""
    if optimizer not in _known:
        _known[optimizer] = RelativeRates(optimizer)
    return _known[optimizer]


def _sends(scale: Tensor) -> bool:
    """Whether a copy from where ``scale`` is can go on while the host does; what the host has, it reads at once."""
    return local(scale).is_cuda


def _versions(tensors: list[Tensor]) -> list[int]:
    return [tensor._version for tensor in tensors]


@torch.no_grad()
def _sums(scales: list[Tensor]) -> Tensor:
    """Of magnitudes, in double, so that their order does not show."""
    device = local(scales[0]).device
    sums = torch.stack([local(scale).abs().double().sum().to(device) for scale in scales])
    if any(local(scale) is not scale for scale in scales):
        _sum_over_parts(sums, scales[0])
    return sums


def _sum_over_parts(values: Tensor, tensor: Tensor) -> None:
    """Over the processes that hold different parts of ``tensor``, in place; those of the same part count once."""
    for axis, placement in enumerate(tensor.placements):
        if placement.is_shard():
            dist.all_reduce(values, group=tensor.device_mesh.get_group(axis))
