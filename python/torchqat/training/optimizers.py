"""The optimizers of a fine-tuning and of a training from scratch, and the rates of their steps."""

import math
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import nn

from torchqat._library import Recipe, TrainSection
from torchqat.layers.quant_layer import SCALE_NAMES
from torchqat.layers.sharded import local

# Optimizers whose steps multiply the rates of relative groups.
_multiplied: "WeakSet[torch.optim.Optimizer]" = WeakSet()


def rate_factor(settings: TrainSection, step: int) -> float:
    """The learning rate at ``step`` as a share of its peak: linear warm-up, then cosine to 5 % or constant."""
    warmup = settings.warmup.step_of(settings.steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.learning_rate_decay == "constant":
        return 1.0
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, settings: Recipe | TrainSection) -> list[dict[str, Any]]:
    """The parameters of a prepared ``model`` for an optimizer: matrices, vectors without decay, and each learned scale.

    The rate of a scale is relative to its size, since an Adam step is absolute, and scales differ by orders of magnitude
    between layers and between widths: a ``Schedule`` that knows the optimizer multiplies it, for every step, by the mean
    magnitude of the layer's scales. Zero points are in levels and need no such factor.

    Args:
        model: Prepared; what does not require a gradient is left out.
        settings: A recipe, or its ``train`` section, whose ``learning_rate``, ``scale_learning_rate`` and ``weight_decay``
            count.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``; ``relative`` says which rates are multiplied.
    """
    settings = settings.train if isinstance(settings, Recipe) else settings
    matrices, vectors, scales = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rsplit(".", 1)[-1]
            (scales if leaf in SCALE_NAMES else matrices if parameter.dim() >= 2 else vectors).append((leaf, parameter))
    groups = [
        {"params": [p for _, p in matrices], "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {"params": [p for _, p in vectors], "lr": settings.learning_rate, "weight_decay": 0.0},
    ]
    for leaf, scale in scales:
        rate = {"lr": settings.scale_learning_rate, "weight_decay": 0.0, "relative": leaf.endswith("scale")}
        groups.append({"params": [scale], **rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
        group.setdefault("relative", False)
    return [group for group in groups if group["params"]]


def scales_note(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A sentence where ``optimizer`` trains learned scales of ``model`` in groups that know nothing of them; else empty."""
    ordinary = {id(p) for group in optimizer.param_groups if "relative" not in group for p in group["params"]}
    names = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in ordinary and name.rpartition(".")[2] in ("weight_scale", "input_scale")
    ]
    if not names:
        return ""
    return (
        f"{type(optimizer).__name__} moves learned scales ({names[0]}; {len(names)} in all) by the rate and the decay of "
        "weights, which suit no scale: they may come to lie at zero or below; make it of torchqat.parameter_groups(model, "
        "recipe)."
    )


def fine_tuning_optimizer(model: nn.Module, settings: TrainSection) -> torch.optim.Optimizer:
    """AdamW over ``parameter_groups``."""
    return torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.95), eps=1e-8)


def multiply_relative_rates(optimizer: torch.optim.Optimizer) -> None:
    """Let every step of ``optimizer`` use the rates of relative groups times the magnitude of their scales."""
    if optimizer in _multiplied:
        return
    _multiplied.add(optimizer)
    rates: list[tuple[dict[str, Any], Any]] = []

    def multiply(optimizer, _args, _kwargs) -> None:
        put_back()  # after a step that failed
        rates.extend((group, group["lr"]) for group in optimizer.param_groups if group.get("relative"))
        _make_relative([group for group, _ in rates])

    def put_back(*_) -> None:
        for group, rate in rates:
            group["lr"] = rate
        rates.clear()

    optimizer.register_step_pre_hook(multiply)
    optimizer.register_step_post_hook(put_back)


def scratch_optimizers(model: nn.Module, settings: TrainSection) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings and vectors: the fewest steps from random weights."""
    inside, rest = [], []
    for name, parameter in model.named_parameters():
        (inside if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name else rest).append(parameter)
    optimizers = [
        torch.optim.Muon(inside, lr=settings.learning_rate, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=0.15 * settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


@torch.no_grad()
def _make_relative(groups: list[dict[str, Any]]) -> None:
    """Multiply the rate of each group, which is one tensor, by its mean magnitude; sums in double, so that their order does
    not show."""
    if not groups:
        return
    scales = [group["params"][0] for group in groups]
    sums = torch.stack([local(scale).abs().double().sum() for scale in scales])
    if any(local(scale) is not scale for scale in scales):
        _sum_over_parts(sums, scales[0])
    for group, scale, size in zip(groups, scales, sums.tolist(), strict=True):
        group["lr"] = group["lr"] * max(size / scale.numel(), 1e-8)


def _sum_over_parts(values: torch.Tensor, tensor: torch.Tensor) -> None:
    """Over the processes that hold different parts of ``tensor``, in place; those of the same part count once."""
    for axis, placement in enumerate(tensor.placements):
        if placement.is_shard():
            dist.all_reduce(values, group=tensor.device_mesh.get_group(axis))
