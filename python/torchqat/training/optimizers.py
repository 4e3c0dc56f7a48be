"""Groups of parameters, the optimizers that a recipe names, and the rates of their steps."""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchqat._library import Recipe, TrainSection
from torchqat.data.functions import names_function
from torchqat.errors import UserError
from torchqat.layers.adapters import check_adapters
from torchqat.layers.prepared import require_module
from torchqat.layers.quant_layer import SCALE_NAMES
from torchqat.layers.stand_ins import QUANTIZABLE
from torchqat.model.blocks import find_blocks
from torchqat.training.masters import Masters
from torchqat.training.muon import Muon
from torchqat.training.other_optimizers import BETAS, Groups, adamw_8bit, of_function
from torchqat.training.weight_rates import weight_rates


def is_scale(name: str) -> bool:
    """Whether the parameter ``name`` is a learned scale or zero point."""
    return name.rpartition(".")[2] in SCALE_NAMES


def rate_factor(settings: TrainSection, step: int) -> float:
    """The learning rate at ``step`` as a share of its peak: linear warm-up, then cosine to 5 % or constant."""
    warmup = settings.warmup.step_of(settings.steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.learning_rate_decay == "constant":
        return 1.0
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_rates(optimizers: list[Optimizer], factor: float) -> None:
    """The learning rate of every group: ``factor`` of its first."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def parameter_groups(model: nn.Module, settings: Recipe | TrainSection) -> Groups:
    """The parameters of a prepared ``model`` for an optimizer: matrices, vectors without decay, and each learned scale.

    An Adam step is absolute, while weights and scales differ by orders of magnitude between models, layers and widths.
    So rates are relative unless the recipe has a ``learning_rate`` (docs/numerics.md 38): those of quantized weights to
    the mean distance between two levels, found here, in one group for all of one shape; that of a scale to its size, which
    a ``Schedule`` that knows the optimizer multiplies in, for every step. Zero points are in levels and need no such factor.

    Args:
        model: Prepared, and calibrated where the recipe needs it; what does not require a gradient is left out.
        settings: A recipe, or its ``train`` section, whose ``learning_rate``, ``relative_learning_rate``,
            ``scale_learning_rate`` and ``weight_decay`` count.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``; ``relative`` says which rates are multiplied.

    Raises:
        UserError: An adapter of peft acts beside the rounded weight of its layer, or ``settings`` are none.
    """
    require_module(model)
    if not isinstance(settings, Recipe | TrainSection):
        raise UserError(
            "settings must be a recipe, whose train section says the rates, or that section, but is a "
            f"{type(settings).__name__}."
        )
    check_adapters(model)
    settings = settings.train if isinstance(settings, Recipe) else settings
    matrices, vectors, scales = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rsplit(".", 1)[-1]
            (scales if leaf in SCALE_NAMES else matrices if parameter.dim() >= 2 else vectors).append((leaf, parameter))
    rated, rest = weight_rates(model, settings)
    quantized = {id(p) for parameters, _ in rated for p in parameters}
    others = [p for _, p in matrices if id(p) not in quantized]
    decay = settings.weight_decay
    groups = [{"params": parameters, "lr": rate, "weight_decay": decay} for parameters, rate in rated]
    groups += [
        {"params": others, "lr": rest, "weight_decay": decay},
        {"params": [p for _, p in vectors], "lr": rest, "weight_decay": 0.0},
    ]
    for leaf, scale in scales:
        rate = {"lr": settings.scale_learning_rate, "weight_decay": 0.0, "relative": leaf.endswith("scale")}
        groups.append({"params": [scale], **rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
        group.setdefault("relative", False)
    return [group for group in groups if group["params"]]


def scales_note(model: nn.Module, optimizer: Optimizer, apart: list[str]) -> str:
    """A sentence where ``optimizer`` has learned scales of ``model``, those that are called ``apart``, in groups that know
    nothing of them, or moves its other parameters alone, as one does that was made before ``prepare``; else empty."""
    if not apart:
        return _without_scales(model, optimizer)
    return (
        f"{type(optimizer).__name__} has learned scales ({apart[0]}; {len(apart)} in all) under the rate and decay of "
        "weights, which would take them to zero and below: they move as those of torchqat.parameter_groups(model, recipe), "
        "by train.scale_learning_rate times their size and without decay."
    )


def _without_scales(model: nn.Module, optimizer: Optimizer) -> str:
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = [(name, id(parameter)) for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = [name for name, key in trained if is_scale(name) and key not in moved]
    # One of masters, or of parts of parameters, has none of the model's own.
    if not scales or not any(key in moved for _, key in trained):
        return ""
    return (
        f"{type(optimizer).__name__} does not move learned scales ({scales[0]}; {len(scales)} in all), which stay as they "
        "are unless another optimizer moves them; make it of torchqat.parameter_groups(model, recipe) after prepare."
    )


def fine_tuning_optimizers(model: nn.Module, settings: TrainSection, masters: Masters | None = None) -> list[Optimizer]:
    """What ``train.optimizer`` names, over ``parameter_groups``; one of them moves all learned scales.

    Args:
        model: Prepared, or a float model.
        settings: The recipe's ``train`` section.
        masters: Moved in the place of the parameters that they are masters of.

    Raises:
        UserError: There is no such optimizer here, or a function of the user's does not move each parameter once.
    """
    of = masters.instead if masters is not None else lambda groups: groups
    groups = parameter_groups(model, settings)
    if names_function(settings.optimizer):
        return of_function(settings, of(groups))
    first, rest = split_groups(model, settings.optimizer, groups)
    factory = {"adamw": _adamw, "adamw_8bit": adamw_8bit, "muon": _muon, "sgd": _sgd}[settings.optimizer]
    return ([factory(of(first))] if first else []) + ([_adamw(of(rest))] if rest else [])


def split_groups(model: nn.Module, optimizer: str, groups: Groups) -> tuple[Groups, Groups]:
    """The groups that ``optimizer`` moves, and those that AdamW moves beside it.

    Muon is for matrices in the blocks of a network, or in a network without blocks, that multiply vectors: not for
    embeddings. Moments of 8 bits are for matrices of any kind.
    """
    if optimizer == "muon":
        chosen = _multiplied_in_blocks(model)
    elif optimizer == "adamw_8bit":
        named = model.named_parameters()
        chosen = {id(p) for name, p in named if p.dim() >= 2 and not is_scale(name)}
    else:
        return groups, []

    def part(is_chosen: bool) -> Groups:
        parts = [[p for p in group["params"] if (id(p) in chosen) == is_chosen] for group in groups]
        return [{**group, "params": part} for group, part in zip(groups, parts, strict=True) if part]

    return part(True), part(False)


def owner_of_scales(optimizers: list[Optimizer], model: nn.Module) -> Optimizer:
    """The one of ``optimizers`` that moves learned scales; the first where none does."""
    scales = {id(p) for name, p in model.named_parameters() if is_scale(name)}
    found = [o for o in optimizers if any(id(p) in scales for group in o.param_groups for p in group["params"])]
    if len(found) > 1:
        raise UserError(
            f"train.optimizer must give all learned scales to one optimizer, but the {len(found)} that it made share them."
        )
    return found[0] if found else optimizers[0]


def scratch_optimizers(model: nn.Module, settings: TrainSection) -> list[Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings and vectors: the fewest steps from random weights."""
    inside, rest = [], []
    for name, parameter in model.named_parameters():
        (inside if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name else rest).append(parameter)
    optimizers = [
        Muon(inside, lr=settings.learning_rate, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=0.15 * settings.learning_rate, betas=BETAS, weight_decay=0.0),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def _adamw(groups: Groups) -> Optimizer:
    return torch.optim.AdamW(groups, betas=BETAS, eps=1e-8)


def _sgd(groups: Groups) -> Optimizer:
    return torch.optim.SGD(groups, momentum=0.9)


def _muon(groups: Groups) -> Optimizer:
    """Its steps as large as AdamW's, so that the same rates fit (arXiv:2502.16982)."""
    return Muon(groups, momentum=0.95, adjust_lr_fn="match_rms_adamw")


def _multiplied_in_blocks(model: nn.Module) -> set[int]:
    """By ``id``, the matrices that Muon moves."""
    blocks = [block for _, block in find_blocks(model, QUANTIZABLE)] or [model]
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    named = [(name, p) for block in blocks for name, p in block.named_parameters()]
    return {id(p) for name, p in named if p.dim() == 2 and not is_scale(name) and id(p) not in looked_up}
