"""A function of the user's that makes optimizers, tried on small tensors before anything is paid for."""

import torch
from torch import nn

from torchqat._library import Plan, Recipe
from torchqat.data.functions import names_function
from torchqat.model.outline import without_numbers
from torchqat.model.prepare import prepare
from torchqat.training.optimizers import parameter_groups
from torchqat.training.other_optimizers import Groups, of_function
from torchqat.training.parameters import choose_parameters


def try_own_optimizer(recipe: Recipe, plan: Plan, model: nn.Module) -> None:
    """Give the function that ``train.optimizer`` names, if it names one, the groups that it will be given, of small tensors.

    Args:
        recipe: Of the run.
        plan: What becomes of the layers of ``model``.
        model: Before it is prepared; its numbers do not matter, and it stays as it is.

    Raises:
        UserError: The function raises, or makes no optimizers that move each parameter once.
    """
    train = recipe.train
    if not train.steps or not names_function(train.optimizer):
        return
    if train.control:
        of_function(train, _small(parameter_groups(without_numbers(model), train)))
    prepared = prepare(without_numbers(model), plan, recipe.initialize)
    choose_parameters(train, prepared)
    of_function(train, _small(parameter_groups(prepared, train)))


def _small(groups: Groups) -> Groups:
    """The same groups of tensors of as many dimensions, none longer than 2."""
    return [
        {**group, "params": [nn.Parameter(torch.zeros([min(2, size) for size in p.shape])) for p in group["params"]]}
        for group in groups
    ]
