"""``prepare``: put a plan into a model. It decides nothing; the plan does."""

from collections.abc import Iterable

from torch import nn

from torchqat._library import Initialize, LayerInfo, LayerPlan, Plan, Recipe
from torchqat._library import make_plan as _make_plan
from torchqat.errors import UserError
from torchqat.kv_cache import attach
from torchqat.linear import QuantLinear


def linear_layers(model: nn.Module) -> list[LayerInfo]:
    """The linear layers of ``model`` as the planner wants them, in model order.

    Output heads and layers whose weight is tied to another module are marked so that only a rule with their full name
    reaches them.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        LayerInfo(
            name,
            "Linear",
            module.in_features,
            module.out_features,
            by_name_only=module is head or name.split(".")[-1] == "lm_head" or id(module.weight) in embeddings,
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """What ``recipe`` means for ``model``: per layer the specs, and the stages of the schedule. ``print`` it.

    Raises:
        RecipeError: A rule matches no layer, or a group does not divide one.
    """
    return _make_plan(recipe, linear_layers(model))


def prepare(
    model: nn.Module,
    recipe: Recipe | Plan,
    method: str | Initialize | None = None,
    weight_cache: str | None = None,
) -> nn.Module:
    """Replace the planned ``nn.Linear`` layers of ``model`` by ``QuantLinear``, in place, and return it.

    Parameters are shared and keep their names, so optimizers built before, ``state_dict`` and checkpoints go on
    working. Without a ``Schedule`` the layers train at their exported widths from the start.

    Args:
        model: Any module; weights finite.
        recipe: A recipe, or a plan made from one.
        method: What ``calibrate`` will do to the weights, a method or all of a recipe's ``initialize``; the recipe's when
            ``None``, ``mse`` for a bare plan. Until then scales are chosen by range for ``rtn``, else by search.
        weight_cache: What layers keep of their quantized weights over a step, ``none``, ``codes`` or ``weights``; the
            recipe's ``train.weight_cache`` when ``None``, ``none`` for a bare plan.

    Raises:
        RecipeError: The recipe does not fit the model.
        UserError: A weight is not finite (the layer is named), or the model is prepared already.
    """
    plan = recipe if isinstance(recipe, Plan) else make_plan(model, recipe)
    weight_cache = weight_cache or (recipe.train.weight_cache if isinstance(recipe, Recipe) else "none")
    settings = method or (recipe.initialize if isinstance(recipe, Recipe) else "mse")
    settings = Initialize(settings) if isinstance(settings, str) else settings
    if any(isinstance(module, QuantLinear) for module in model.modules()):
        raise UserError("The model must not be prepared already, but has QuantLinear layers.")
    replace_layers(model, plan.layers, settings, weight_cache)
    if plan.kv_cache is not None:
        attach(model, plan.kv_cache)
    if "hadamard" in settings.transforms:
        _untie_head(model)
    model.qat_initialize = settings  # for calibrate
    return model


def replace_layers(
    model: nn.Module, layers: Iterable[LayerPlan], settings: Initialize, weight_cache: str = "none"
) -> None:
    """Put a ``QuantLinear`` in the place of each planned linear layer.

    Raises:
        UserError: A weight is not finite (the layer is named); nothing is replaced then.
    """
    search = "rtn" if settings.rounding == "rtn" else "mse"
    modules = dict(model.named_modules())
    for layer in layers:
        _check_finite(layer.name, modules[layer.name])
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        linear = QuantLinear(
            modules[layer.name], layer.weight, layer.input, search, weight_cache, settings.keeps_scales
        )
        setattr(modules[parent], leaf, linear)


def quant_layers(model: nn.Module) -> list[tuple[str, QuantLinear]]:
    """The prepared layers and their names, in model order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, QuantLinear)]


def require_prepared(model: nn.Module) -> None:
    if not quant_layers(model):
        raise UserError("The model must be prepared first, with torchqat.prepare(model, recipe).")


def _check_finite(name: str, module: nn.Linear) -> None:
    bad = int((~module.weight.detach().isfinite()).sum())
    if bad:
        raise UserError(f"The weight of {name} must be finite, but has {bad} elements that are NaN or infinite.")


def _untie_head(model: nn.Module) -> None:
    """Give the output head a weight of its own where it shares the embedding's: only one of them is scaled by a norm."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False
