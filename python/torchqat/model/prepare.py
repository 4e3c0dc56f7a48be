"""``prepare``: put a plan into a model. It decides nothing; the plan does."""

from collections.abc import Sequence

from torch import nn

from torchqat._library import Initialize, LayerInfo, LayerPlan, Plan, Recipe
from torchqat._library import make_plan as _make_plan
from torchqat.errors import UserError
from torchqat.layers.conv import QuantConv2d
from torchqat.layers.embedding import QuantEmbedding
from torchqat.layers.kv_cache import attach
from torchqat.layers.linear import QuantLinear
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.shared_outer_scale import SharedOuterScale

# By the class that they stand in for.
_QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
    nn.Embedding: QuantEmbedding,
}
QUANTIZABLE = tuple(_QUANTIZED)


def plannable_layers(model: nn.Module) -> list[LayerInfo]:
    """The layers of ``model`` that can be quantized, as the planner wants them, in model order.

    Output heads, embeddings and layers whose weight is tied to another module are marked so that only a rule with their
    full name reaches them.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        LayerInfo(
            name,
            _stand_in(module).kind,
            module.weight[0].numel(),
            module.weight.shape[0],
            by_name_only=module is head or name.split(".")[-1] == "lm_head" or id(module.weight) in embeddings,
        )
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZABLE)
    ]


def _stand_in(module: nn.Module) -> type[QuantLayer]:
    return next(stand_in for kind, stand_in in _QUANTIZED.items() if isinstance(module, kind))


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """What ``recipe`` means for ``model``: per layer the specs, and the stages of the schedule. ``print`` it.

    Raises:
        RecipeError: A rule matches no layer, or a group does not divide one.
    """
    return _make_plan(recipe, plannable_layers(model))


def prepare(
    model: nn.Module,
    recipe: Recipe | Plan,
    method: str | Initialize | None = None,
    weight_cache: str | None = None,
) -> nn.Module:
    """Replace the planned layers of ``model`` by ``QuantLinear`` and the like, in place, and return it.

    Parameters are shared and keep their names, so optimizers built before, ``state_dict`` and checkpoints go on
    working. Without a ``Schedule`` the layers train at their exported widths from the start.

    Args:
        model: Any module; weights finite.
        recipe: A recipe, or a plan made from one.
        method: What ``calibrate`` will do to the weights, a method or all of a recipe's ``initialize``; the recipe's when
            ``None``, ``mse`` for a bare plan. Until then scales are chosen by range for ``rtn``, else by search.
        weight_cache: What layers keep of their quantized weights over a step, ``auto``, ``none``, ``codes`` or
            ``weights``; the recipe's ``train.weight_cache`` when ``None``, ``none`` for a bare plan.

    Raises:
        RecipeError: The recipe does not fit the model.
        UserError: A weight is not finite (the layer is named), the model is prepared already, or a weight that two layers
            share would be quantized in one of them alone.
    """
    plan = recipe if isinstance(recipe, Plan) else make_plan(model, recipe)
    weight_cache = weight_cache or (recipe.train.weight_cache if isinstance(recipe, Recipe) else "none")
    settings = method or (recipe.initialize if isinstance(recipe, Recipe) else "mse")
    settings = Initialize(settings) if isinstance(settings, str) else settings
    if quant_layers(model):
        raise UserError(
            f"The model must not be prepared already, but has {type(quant_layers(model)[0][1]).__name__} layers."
        )
    _check_tied(model, plan)
    replace_layers(model, plan.layers, settings, weight_cache)
    if plan.kv_cache is not None:
        attach(model, plan.kv_cache)
    if "hadamard" in settings.transforms:
        _untie_head(model)
    model.qat_initialize = settings  # for calibrate
    return model


def replace_layers(
    model: nn.Module, layers: Sequence[LayerPlan], settings: Initialize, weight_cache: str = "none"
) -> None:
    """Put a quantized layer in the place of each planned one.

    Raises:
        UserError: A weight is not finite (the layer is named); nothing is replaced then.
    """
    search = "rtn" if settings.rounding == "rtn" else "mse"
    modules = dict(model.named_modules())
    for layer in layers:
        _check_finite(layer.name, modules[layer.name])
    groups = [layer.shares for layer in layers if layer.shares and layer.shares[0] == layer.name]
    derived_together = {name for names in groups for name in names}
    quantized = {}
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        found = modules[layer.name]
        # Those are searched when all of them are there.
        begin = "rtn" if layer.name in derived_together else search
        stand_in = _stand_in(found)(found, layer.weight, layer.input, begin, weight_cache, settings.keeps_scales)
        setattr(modules[parent], leaf, stand_in)
        quantized[layer.name] = stand_in
    for names in groups:
        _share_outer_scale([quantized[name] for name in names if name in quantized], search)


def _share_outer_scale(layers: list[QuantLayer], method: str) -> None:
    """Scales that stay, or are learned from a beginning, are derived under the shared outer scale."""
    SharedOuterScale(layers)
    for layer in layers:
        if layer.weight_spec.scale != "minmax":
            layer.derive_weight_scale(method)


def _check_tied(model: nn.Module, plan: Plan) -> None:
    """A checkpoint has a shared weight once: an embedding that is quantized needs the head to be so, too."""
    planned = {layer.name: layer for layer in plan.layers if layer.weight}
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZABLE):
            holders.setdefault(id(module.weight), []).append(name)
    for names in holders.values():
        if not any(planned[name].type == "Embedding" for name in names if name in planned):
            continue
        left = [name for name in names if name not in planned or planned[name].weight != planned[names[0]].weight]
        if left:
            raise UserError(
                f"{' and '.join(names)} share a weight, so that all or none of them must be quantized, and alike, but the "
                f"recipe has no such rule for {left[0]}."
            )


def _check_finite(name: str, module: nn.Module) -> None:
    bad = 0 if module.weight.is_meta else int((~module.weight.detach().isfinite()).sum())
    if bad:
        raise UserError(f"The weight of {name} must be finite, but has {bad} elements that are NaN or infinite.")


def _untie_head(model: nn.Module) -> None:
    """Give the output head a weight of its own where it shares the embedding's: only one of them is scaled by a norm."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False
