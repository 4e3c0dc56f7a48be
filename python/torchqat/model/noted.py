"""What ``prepare`` notes beside a model for the steps after it, which may be given a model that holds that one."""

from torch import nn
from torch.nn.utils import parametrize

from torchqat._library import Initialize
from torchqat.errors import UserError, first_of
from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.scale_fit import misfit
from torchqat.layers.stand_ins import is_layer
from torchqat.layers.step import counting

# Times the error of scales of their own, which trained scales do not come to beside averages of their weights.
_FAR_WORSE = 16.0


def note_preparation(model: nn.Module, settings: Initialize) -> None:
    """Note what ``calibrate`` is to do, that it has not, and which layers are quantized."""
    model.qat_initialize = settings
    model.qat_awaits_calibration = solves(settings)
    model.qat_floats = frozenset(_floating_layers(model))
    model.qat_parameters = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
    model.qat_layers = tuple(name for name, layer in model.named_modules() if isinstance(layer, QuantLayer))


def solves(settings: Initialize) -> bool:
    """Whether ``calibrate`` changes weights, be it that it rounds them by data or that it transforms them."""
    return settings.needs_data or bool(settings.transforms)


def initialization_of(model: nn.Module) -> Initialize:
    """What ``prepare`` was told of ``model``, or of the module in it that was prepared.

    Raises:
        UserError: Several modules in it were, each by itself, and are to be calibrated; or it is a part of one that was.
    """
    found = _prepared(model)
    if not found:
        raise UserError(
            "calibrate must be given the model that was given to prepare, or one that holds it, but "
            f"{type(model).__name__} is a part of it."
        )
    if len(found) > 1 and any(solves(module.qat_initialize) for _, module in found):
        names = " and ".join(name for name, _ in found)
        raise UserError(
            f"{names} were prepared one by one, so that each must be calibrated by itself: give calibrate one of them, and "
            "by forward how all of the model is run."
        )
    return found[0][1].qat_initialize


def note_calibration(model: nn.Module) -> None:
    """``calibrate`` has run."""
    for _, layer in quant_layers(model):
        layer.weight_was_given()
    for _, module in _prepared(model):
        module.qat_awaits_calibration = False


def uncalibrated_note(model: nn.Module) -> str:
    """A sentence where the recipe's method was to round weights in ``calibrate``, which was not called; else empty."""
    for _, module in _prepared(model):
        if getattr(module, "qat_awaits_calibration", False):  # one of an earlier version has no such note
            return (
                f"initialize.method {module.qat_initialize.method} has done nothing, since torchqat.calibrate was not "
                "called: weights are rounded to nearest."
            )
    return ""


def rangeless_note(model: nn.Module) -> str:
    """A sentence where no input or cache whose scale is fixed beforehand has one, as before calibration; else empty."""
    fixed = [
        (f"the input of {name}", layer.input_ready)
        for name, layer in quant_layers(model)
        if layer.input_spec is not None and not layer.input_spec.dynamic and not layer.input_spec.follows
    ]
    fixed += [(f"the cache of {name}", cache.calibrated) for name, cache in caches(model) if cache.spec.calibrated]
    if not fixed or any(ready for _, ready in fixed):
        return ""  # what calibrate did not reach it has told of
    return (
        f"No range was found for {first_of([what for what, _ in fixed])}, since torchqat.calibrate was not called: what has "
        "none is not rounded in training, and cannot be exported."
    )


def misfit_note(model: nn.Module) -> str:
    """A sentence where weights were assigned since their scales were chosen, which round them far worse; else empty."""
    found = misfits(model)
    if not found:
        return ""
    names = sorted(found, key=found.get, reverse=True)
    return (
        f"Scales of {first_of(names)} were chosen for other weights than are there now, which they round with up to "
        f"{found[names[0]]:.0f} times the squared error of scales of their own: call torchqat.calibrate after weights are "
        "assigned, which chooses them anew."
    )


def misfits(model: nn.Module) -> dict[str, float]:
    """Layers whose scales are those of other weights, and how many times the error of their own they round with.

    Of a model that was trained these are weights that were written since its last step alone, and fit far worse: others
    learned to live with their scales, however far they went, and averages of them are written, too.
    """
    layers, least = quant_layers(model), 0.0
    trained = any(layer.frozen_weight.in_training for _, layer in layers)
    if trained or any(int(module.qat_step) for module in counting(model) if not module.qat_step.is_meta):
        layers, least = [(name, layer) for name, layer in layers if layer.stepped_weight.written(layer)], _FAR_WORSE
    found = {name: misfit(layer) for name, layer in layers}
    return {name: ratio for name, ratio in found.items() if ratio > least}


def lost_scales_note(model: nn.Module) -> str:
    """A sentence where learned scales came to lie at zero or below, as at the rate of weights; else empty."""
    lost = {name: count for name, layer in quant_layers(model) if (count := layer.lost_scales())}
    if not lost:
        return ""
    return (
        f"Training took {sum(lost.values())} learned scales of {first_of(list(lost))} to zero or below: what is exported is "
        "what training computed with, but such scales round their weights badly; in groups of torchqat.parameter_groups, or "
        "at a lower scale_learning_rate, scales stay positive."
    )


def changed_note(model: nn.Module) -> str:
    """A sentence where weights that were frozen in training are others since, as merged adapters make them; else empty."""
    names = [name for name, layer in quant_layers(model) if layer.frozen_weight.changed(layer)]
    if not names:
        return ""
    return (
        f"Weights of {first_of(names)} were frozen while the model trained, and have changed since, as where an adapter "
        "that trained beside them was merged: training has not seen them rounded as they are now. torchqat.attach_adapters "
        "lets adapters train through the rounding."
    )


def check_still_quantized(model: nn.Module) -> None:
    """Whether each layer that ``prepare`` put into ``model`` is there, with a weight of its own, in the shape that it had.

    Raises:
        UserError: There is one in floating point in its place by now, or another weight, such as that of an embedding that
            was resized; or its weight is computed in every call, which no checkpoint says.
    """
    for place, module in _prepared(model):
        _check_parameters(place, module)
        for name in getattr(module, "qat_layers", ()):
            found = _at(module, name)
            if found is None:
                continue
            full = ".".join(part for part in (place, name) if part)
            if _is_in_floating_point(found):
                raise UserError(
                    f"{full} was quantized by prepare, but a {type(found).__name__} in floating point has taken its place: "
                    "resize or replace layers before prepare."
                )
            if isinstance(found, QuantLayer):
                _check_weight(full, found)


def _is_in_floating_point(module: nn.Module) -> bool:
    """Whether it has weights of its own and no quantized layer: what wraps one has that inside."""
    if any(isinstance(inside, QuantLayer) for inside in module.modules()):
        return False
    return is_layer(module) or next(module.parameters(), None) is not None


def added_note(model: nn.Module) -> str:
    """A sentence on layers that were put into ``model`` after ``prepare``, which looked for none later; else empty."""
    names = []
    for place, module in _prepared(model):
        if (known := getattr(module, "qat_floats", None)) is None:  # of an earlier version
            continue
        added = [name for name in _floating_layers(module) if name not in known]
        names += [".".join(part for part in (place, name) if part) for name in added]
    if not names:
        return ""
    return (
        f"{first_of(names)} came into the model after prepare, which quantizes what is there, and stays in floating "
        "point."
    )


def _floating_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_layer(module) and not isinstance(module, QuantLayer)]


def _check_parameters(place: str, prepared: nn.Module) -> None:
    """A checkpoint would have what a parameter is made of, under names that no loader of the model knows."""
    known = getattr(prepared, "qat_parameters", None)
    if known is None:  # of an earlier version
        known = {f"{name}.weight" for name in getattr(prepared, "qat_layers", ())}
    for name, module in prepared.named_modules():
        for leaf in _computed(module):
            if leaf not in module._parameters and (f"{name}.{leaf}" if name else leaf) in known:
                holder = ".".join(part for part in (place, name) if part)
                raise UserError(
                    f"The {leaf} of {holder or 'the model'} must be a parameter, but is computed anew in every call by what "
                    "was added to the layer after prepare (a parametrization, a norm of weights, pruning): remove it, so "
                    f"that the {leaf} stays as it makes it, or add it before prepare to a layer that is left by a rule with "
                    "weight: float."
                )


def _computed(module: nn.Module) -> list[str]:
    """Names of tensors that ``module`` makes of others in each of its calls."""
    found = list(module.parametrizations) if parametrize.is_parametrized(module) else []
    for ending in ("_orig", "_g"):  # pruning and spectral norm; norm of weights
        found += [name.removesuffix(ending) for name in module._parameters if name.endswith(ending)]
    return found


def _check_weight(name: str, layer: QuantLayer) -> None:
    weight = layer._parameters.get("weight")
    if weight is not None and weight.dim() > 1 and weight.numel() and tuple(weight.shape) != layer.weight_shape:
        raise UserError(
            f"{name} was quantized by prepare with a weight of {list(layer.weight_shape)}, but has one of "
            f"{list(weight.shape)} by now: resize or replace layers before prepare."
        )


def _prepared(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if "qat_initialize" in vars(module)]


def _at(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        module = module._modules.get(part)
        if module is None:
            return None
    return module
