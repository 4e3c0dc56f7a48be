"""``prepare``: put a plan into a model. It decides nothing; the plan does."""

from collections.abc import Sequence

from torch import nn

from torchqat._library import Initialize, LayerPlan, Plan, Recipe
from torchqat.errors import UserError
from torchqat.layers.experts import ExpertWeights, QuantExperts, quantize_experts
from torchqat.layers.kv_cache import attach, check_attention
from torchqat.layers.padding import watch_masks
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.shared_outer_scale import SharedOuterScale
from torchqat.layers.stand_ins import is_layer, stand_in_of
from torchqat.layers.step import count_steps
from torchqat.layers.tied_scales import share_learned_scales
from torchqat.layers.wrapped import before_parallel, unwrapped
from torchqat.model.experts import expert_weights
from torchqat.model.finite import check_finite
from torchqat.model.noted import note_preparation, solves
from torchqat.model.planned import Planned, note_plan, require_recipe
from torchqat.model.saving import tell_of_saving
from torchqat.model.towers import output_head
from torchqat.model.weights import count_parameters, plannable_layers
from torchqat.progress import counted


def make_plan(model: nn.Module, recipe: Recipe) -> Plan:
    """What ``recipe`` means for ``model``: per layer the specs, what is left alone, and the stages of the schedule.

    ``print`` it.

    Raises:
        RecipeError: A rule matches no layer, or reaches weights that no layer of ours stands in for and does not say
            ``allow_float``, or a group does not divide a layer.
        UserError: The recipe has a ``kv_cache``, and the model no attention for it, or heads that its groups do not divide.
    """
    return _planned(unwrapped(model), recipe)[0]


def _planned(model: nn.Module, recipe: Recipe) -> tuple[Plan, Planned]:
    require_recipe(recipe, ", or make_plan")
    planned = Planned(plannable_layers(model), count_parameters(model))
    plan = planned.plan(recipe)
    if plan.kv_cache is not None:
        check_attention(model, plan.kv_cache)
    return plan, planned


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
        model: Any module, or what ``torch.compile`` made of it; its numbers finite.
        recipe: A recipe, or a plan made from one.
        method: What ``calibrate`` will do to the weights, a method or all of a recipe's ``initialize``; the recipe's when
            ``None``, ``mse`` for a bare plan. Until then scales are chosen by range for ``rtn``, else by search.
        weight_cache: What layers keep of their quantized weights over a step, ``auto``, ``none``, ``codes`` or
            ``weights``; the recipe's ``train.weight_cache`` when ``None``, ``none`` for a bare plan.

    Raises:
        RecipeError: The recipe does not fit the model.
        UserError: A parameter or buffer is not finite (it is named; masks and bounds may be infinite), the model is prepared
            already, has adapters of peft or is in DDP, is a single layer, or a weight that two layers share would be
            quantized in one of them alone.
    """
    given, model = model, before_parallel(model)
    plan, planned = (recipe, None) if isinstance(recipe, Plan) else _planned(model, recipe)
    weight_cache = weight_cache or (recipe.train.weight_cache if isinstance(recipe, Recipe) else "none")
    settings = method or (recipe.initialize if isinstance(recipe, Recipe) else "mse")
    settings = Initialize(settings) if isinstance(settings, str) else settings
    if quant_layers(model):
        raise UserError(
            f"The model must not be prepared already, but has {type(quant_layers(model)[0][1]).__name__} layers."
        )
    _check_holds_layers(model, plan)
    _check_tied(model, plan, settings)
    _check_adapters(model, plan)
    _check_shared_experts(model, plan)
    check_finite(model, "the model", {id(_place(model, layer.name).weight) for layer in plan.layers})
    replace_layers(model, plan.layers, settings, weight_cache)
    if plan.kv_cache is not None:
        attach(model, plan.kv_cache)
    if "hadamard" in settings.transforms:
        _untie_head(model)
    inputs = [layer.input_spec for _, layer in quant_layers(model) if layer.input_spec is not None]
    if any(spec.follows and not spec.dynamic for spec in inputs):
        watch_masks(model)
    note_preparation(model, settings)
    if planned is not None:
        note_plan(model, planned, plan)
    count_steps(model)
    tell_of_saving(model)
    return given


def replace_layers(
    model: nn.Module, layers: Sequence[LayerPlan], settings: Initialize, weight_cache: str = "none"
) -> None:
    """Put a quantized layer in the place of each planned one, under all of its names.

    Layers that share their weight, and their bias, become one; an embedding and a head learn the scales of theirs together.

    Raises:
        UserError: A weight is not finite, or an embedding renormalises its own (the layer is named); nothing is replaced
            then.
    """
    search = "rtn" if settings.rounding == "rtn" else "mse"
    places = {layer.name: _place(model, layer.name) for layer in layers}
    for name, place in places.items():
        _check_finite(name, place)
        _check_stays(name, place)
    groups = [layer.shares for layer in layers if layer.shares and layer.shares[0] == layer.name]
    derived_together = {name for names in groups for name in names}
    quantized: dict[str, QuantLayer] = {}
    by_weight: dict[tuple, QuantLayer] = {}
    tables: dict[int, QuantLayer] = {}
    for layer in counted(layers, "Rounding layers"):
        found = places[layer.name]
        # Those are searched when all of them are there.
        begin = "rtn" if layer.name in derived_together else search
        is_experts = isinstance(found, ExpertWeights)
        stand_in = QuantExperts if is_experts else stand_in_of(found)
        same = (type(found), id(found.weight), id(getattr(found, "bias", None)))
        if same not in by_weight:
            made = stand_in(found, layer.weight, layer.input, begin, weight_cache, settings.keeps_scales)
            by_weight[same] = made
            if not is_experts and "weight" in found._parameters:  # one of its own, not made of others
                first = tables.setdefault(id(found.weight), made)
                if first is not made:
                    share_learned_scales(made, first)
        quantized[layer.name] = by_weight[same]
    _put_in(model, {places[n]: layer for n, layer in quantized.items() if not isinstance(layer, QuantExperts)})
    _put_into_experts([layer for layer in quantized.values() if isinstance(layer, QuantExperts)])
    for names in groups:
        _share_outer_scale([quantized[name] for name in names if name in quantized], search)


def _place(model: nn.Module, name: str) -> nn.Module | ExpertWeights:
    """The layer of that name, or the parameter of a mixture's experts."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    return expert_weights(holder, leaf) if leaf in holder._parameters else model.get_submodule(name)


def _put_into_experts(layers: list[QuantExperts]) -> None:
    of_holder: dict[nn.Module, list[QuantExperts]] = {}
    for layer in layers:
        of_holder.setdefault(layer.holder, []).append(layer)
    for held in of_holder.values():
        quantize_experts(held)


def _put_in(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    """Each of ``replaced`` under every name that it has, in what has taken the place of a layer as well."""
    for parent in [*model.modules(), *replaced.values()]:
        for leaf, child in parent._modules.items():
            if child in replaced:
                setattr(parent, leaf, replaced[child])
        if isinstance(parent, nn.TransformerEncoderLayer) and any(m in replaced.values() for m in parent.children()):
            parent.activation_relu_or_gelu = 0  # torch's fused path reads weights without calling their layers


def _share_outer_scale(layers: list[QuantLayer], method: str) -> None:
    """Scales that stay, or are learned from a beginning, are derived under the shared outer scale."""
    SharedOuterScale(layers)
    for layer in layers:
        if not layer.weight_spec.finds_scale:
            layer.derive_weight_scale(method)


def _check_holds_layers(model: nn.Module, plan: Plan) -> None:
    """A layer can be replaced in the module that holds it alone."""
    if any(layer.name == "" for layer in plan.layers):
        raise UserError(
            f"The model must be a module that holds its layers, in which they are replaced, but is a "
            f"{type(model).__name__} itself: put it into another, such as nn.Sequential."
        )


def _check_tied(model: nn.Module, plan: Plan, settings: Initialize) -> None:
    """A checkpoint has a shared weight once: what shares it must be quantized alike, or not at all.

    A head alone may be, beside an embedding, of which it then has a copy there; until then they have one weight.
    """
    planned = {layer.name: layer for layer in plan.layers if layer.weight}
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if is_layer(module) and module._parameters.get("weight") is not None:
            holders.setdefault(id(module.weight), []).append((name, module))
    for held in holders.values():
        names = [name for name, _ in held]
        tables = [name for name, module in held if isinstance(module, nn.Embedding)]
        first = next((name for name in tables or names if name in planned), None)
        head = next((name for name in names if name in planned), None)
        if first is None and head is not None and solves(settings) and "hadamard" not in settings.transforms:
            raise UserError(
                f"{head} shares its weight with {tables[0]}, which stays in floating point and would change with what "
                f"initialize.method {settings.method} makes of it: quantize both alike, or give {head} a weight of its own "
                "before prepare."
            )
        if first is None or len(names) == 1:
            continue
        left = [name for name in names if name not in planned or planned[name].weight != planned[first].weight]
        if not tables and len({(type(m), id(getattr(m, "bias", None))) for _, m in held}) > 1:
            raise UserError(
                f"{' and '.join(names)} share a weight, so that they must be layers of one class with one bias or none to "
                "be quantized, but are not."
            )
        if left:
            raise UserError(
                f"{' and '.join(names)} share a weight, so that all or none of them must be quantized, and alike, but the "
                f"recipe has no such rule for {left[0]}."
            )


def _check_shared_experts(model: nn.Module, plan: Plan) -> None:
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() == 3:
                holders.setdefault(id(parameter), []).append(name)
    for layer in plan.layers:
        if layer.type == QuantExperts.kind:
            held = holders[id(_place(model, layer.name).weight)]
            if len(held) > 1:
                raise UserError(
                    f"Experts must be those of one module to be quantized, but {layer.name} is a parameter of "
                    f"{' and '.join(held)}; leave it by a rule with weight: float."
                )


def _check_adapters(model: nn.Module, plan: Plan) -> None:
    """peft's layers add their share to what the layer below gives, rounded or not: merged, it would be rounded as well."""
    for layer in plan.layers:
        parent = layer.name.rpartition(".")[0]
        if type(model.get_submodule(parent)).__module__.startswith("peft.tuners"):
            raise UserError(
                f"The model must be prepared before it has adapters, but {parent} has one: call torchqat.prepare, then "
                "peft.get_peft_model and torchqat.attach_adapters."
            )


def _check_finite(name: str, module: nn.Module | ExpertWeights) -> None:
    bad = 0 if module.weight.is_meta else int((~module.weight.detach().isfinite()).sum())
    if bad:
        raise UserError(f"The weight of {name} must be finite, but has {bad} elements that are NaN or infinite.")


def _check_stays(name: str, layer: nn.Module | ExpertWeights) -> None:
    """An embedding that renormalises what is looked up would leave the grid that its entries were rounded to."""
    if getattr(layer, "max_norm", None) is not None:
        raise UserError(f"The embedding {name} must not renormalise its weight (max_norm) to be quantized.")


def _untie_head(model: nn.Module) -> None:
    """Give the output head a weight of its own where it shares the embedding's: only one of them is scaled by a norm."""
    head = output_head(model)
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = False
