"""Where numbers stopped being numbers: for the message of a training that has to stop."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import SCALE_NAMES
from torchqat.layers.sharded import is_sharded, local
from torchqat.model.blocks import hooks
from torchqat.training.processes import first_said, mean


@torch.no_grad()
def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """The first thing in ``model`` that is not finite, in words that follow "the first is"; empty where nothing is.

    A parameter or scale, in the order of the model; else the output of the first module for which ``run`` gives one. Every
    process has to call it.
    """
    found: list[str] = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(local(tensor)).all():
            found.append(name)
            break
    if broken := first_said(found):
        return broken

    def watch(name: str):
        def look(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and not found and not torch.isfinite(output).all():
                found.append(f"the output of {name}")

        return look

    with hooks([module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]):
        run()
    return first_said(found)


def scale_not_finite(model: nn.Module) -> str:
    """The name of the first learned scale or zero point that is not finite; empty where all are."""
    found = [name for name, scale in _learned(model) if not torch.isfinite(local(scale.detach())).all()]
    return first_said(found) if is_sharded(model) else next(iter(found), "")


@torch.no_grad()
def finite_scales(model: nn.Module) -> Tensor:
    """Whether all learned scales and zero points, and whether their gradients, are finite: 1 where they are, else less.

    Two numbers, which stay on the device. Every process has to call it.
    """
    scales = [scale for _, scale in _learned(model)]
    gradients = [scale.grad for scale in scales if scale.grad is not None]
    device = local(scales[0]).device if scales else None
    found = torch.stack([_is_finite(tensors, device) for tensors in (scales, gradients)])
    return mean(found) if is_sharded(model) else found


def _is_finite(tensors: list[Tensor], device: torch.device | None) -> Tensor:
    parts = [part for part in map(local, tensors) if part.numel()]  # a process may have none of a small one
    if not parts:
        return torch.ones((), device=device)
    largest = nn.utils.get_total_norm(parts, math.inf)
    return torch.isfinite(largest).float().to(device)


def _learned(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, layer in quant_layers(model):
        for leaf in SCALE_NAMES:
            if isinstance(scale := getattr(layer, leaf, None), nn.Parameter):
                yield f"{name}.{leaf}", scale
