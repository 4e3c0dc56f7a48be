"""Optimizers that torch does not have: in 8 bits, by libraries, and those that a function of the user's makes."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchqat._library import TrainSection
from torchqat.data.functions import find_function, names_function
from torchqat.errors import UserError, first_line

Groups = list[dict[str, Any]]

# Of AdamW, in whatever precision its moments are.
BETAS = (0.9, 0.95)


def check_optimizer(settings: TrainSection) -> None:
    """Whether what ``train.optimizer`` names can be had here.

    Raises:
        UserError: It cannot.
    """
    if names_function(settings.optimizer):
        find_function("train.optimizer", settings.optimizer)
    if missing := missing_library(settings):
        raise UserError(missing)


def missing_library(settings: TrainSection) -> str | None:
    """Which library ``train.optimizer`` needs that is not installed here."""
    if settings.optimizer != "adamw_8bit" or any(map(find_spec, ("bitsandbytes", "torchao"))):
        return None
    return (
        "train.optimizer: adamw_8bit needs bitsandbytes or torchao, and neither is installed: pip install bitsandbytes."
    )


def adamw_8bit(groups: Groups) -> Optimizer:
    """AdamW with moments of 8 bits in blocks of 256 (Dettmers et al. 2021, arXiv:2110.02861).

    bitsandbytes' where it is installed, else torchao's.
    """
    if find_spec("bitsandbytes") is not None:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, betas=BETAS, eps=1e-8)
    from torchao.optim import AdamW8bit

    optimizer = AdamW8bit(groups, betas=BETAS, eps=1e-8)
    optimizer.register_state_dict_post_hook(_taken_apart)
    optimizer.register_load_state_dict_pre_hook(_put_together)
    return optimizer


def _taken_apart(_optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """With torchao's tensors as what they hold, since a checkpoint is read without the classes of others."""
    return _changed(state, _parts_of)


def _put_together(_optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    from torchao.optim.subclass_8bit import OptimState8bit

    def whole(value: Any) -> Any:
        return OptimState8bit(*value["tensors"], *value["settings"]) if isinstance(value, dict) else value

    return _changed(state, whole)


def _changed(state: dict[str, Any], change: Any) -> dict[str, Any]:
    return {
        **state,
        "state": {index: {key: change(value) for key, value in kept.items()} for index, kept in state["state"].items()},
    }


def _parts_of(value: Any) -> Any:
    if not isinstance(value, Tensor) or type(value) is torch.Tensor:
        return value
    names, settings = value.__tensor_flatten__()
    return {"tensors": [getattr(value, name) for name in names], "settings": settings}


def of_function(settings: TrainSection, groups: Groups) -> list[Optimizer]:
    """What the function that ``train.optimizer`` names makes of ``groups``, those of ``parameter_groups``, and ``settings``.

    Raises:
        UserError: That is no optimizer and no list of some, or does not move each parameter once; or it raises.
    """
    function = find_function("train.optimizer", settings.optimizer)
    try:
        made = function(groups, settings)
    except Exception as error:
        raise UserError(
            f"train.optimizer must make an optimizer of the groups that it is given, but {settings.optimizer} raised "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error
    optimizers = list(made) if isinstance(made, list | tuple) else [made]
    wrong = [type(o).__name__ for o in optimizers if not isinstance(o, Optimizer)]
    if wrong or not optimizers:
        raise UserError(
            f"train.optimizer must give a torch.optim.Optimizer or a list of some, but {settings.optimizer} gave "
            f"{wrong[0] if wrong else 'an empty list'}."
        )
    moved = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    given = {id(p) for group in groups for p in group["params"]}
    if sorted(map(id, moved)) != sorted(given):
        raise UserError(
            f"train.optimizer must move each parameter that trains once, but what {settings.optimizer} gave moves "
            f"{len(moved)} tensors, {len({id(p) for p in moved} & given)} of the {len(given)} that train."
        )
    for group in (group for o in optimizers for group in o.param_groups):
        group.setdefault("initial_lr", float(group["lr"]))
    return optimizers
