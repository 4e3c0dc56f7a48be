"""What a checkpoint holds beside its quantized layers, and what its configuration is made from."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, KvCacheSpec, LayerPlan, holds_kv_cache
from torchqat.checkpoints.formats.numbers import held_in
from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.layers.kv_cache import SCALE_NAMES, QuantKvCache, caches
from torchqat.layers.kv_cache import STATE_NAMES as CACHE_NAMES
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import STATE_NAMES, QuantLayer
from torchqat.layers.sharded import local, whole
from torchqat.model.weights import other_names

# Formats whose configuration says that keys and values are quantized.
_TELL_OF_CACHES = ("compressed-tensors", "compressed-tensors-0.18", "modelopt")


def checkpoint_plan(model: nn.Module) -> CheckpointPlan:
    """The quantized layers of a prepared model, its linear layers that stay in floating point, and its cache."""
    layers = [layer.plan(name) for name, layer in quant_layers(model) if layer.weight_spec is not None]
    return CheckpointPlan(layers, floating_layers(model, layers), cache_spec(model))


def check_state(model: nn.Module) -> None:
    """Whether all that ``model`` keeps is tensors, as a checkpoint does.

    Raises:
        UserError: A module keeps something else, by ``get_extra_state``.
    """
    for name, kept in model.state_dict(keep_vars=True).items():
        if not isinstance(kept, Tensor):
            raise UserError(
                f"A checkpoint holds tensors alone, but {name} is a {type(kept).__name__}: let get_extra_state of that "
                "module return a tensor, or keep it in the configuration."
            )


def built_empty(architecture: type[nn.Module], config: Any) -> nn.Module | None:
    """A model on the meta device, of a class of transformers; none of a class that takes more than ``config``."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return architecture(copy.deepcopy(config))
        except TypeError:
            return None


def check_shared(model: nn.Module) -> None:
    """Whether what transformers builds from the configuration of ``model`` shares the weights that ``model`` shares.

    A checkpoint has a shared weight once, which a class with two of them does not find twice.

    Raises:
        UserError: It has two where ``model`` has one.
    """
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied is None:  # no model of transformers
        return
    first: dict[int, str] = {}
    kept = {n: p for n, p in model.state_dict(keep_vars=True).items() if isinstance(p, nn.Parameter) and n not in tied}
    again = {n: one for n, p in kept.items() if (one := first.setdefault(id(p), n)) != n}
    if not again:
        return
    empty = built_empty(type(model), model.config)
    if empty is None:
        return
    built = empty.state_dict(keep_vars=True)
    for name, one in again.items():
        if name in built and one in built and built[name] is not built[one]:
            raise UserError(
                f"{name} is {one} in this model, of which a checkpoint has one, but a {type(model).__name__} that is built "
                "from the configuration has two: give each a weight of its own."
            )


def floating_layers(model: nn.Module, planned: list[LayerPlan]) -> list[str]:
    """The linear layers of ``model`` that are not planned: configurations name them, since others are not expected.

    Other modules with a matrix for a weight are among them, such as routers of experts: engines build linear layers of them.
    """
    names = {layer.name for layer in planned}
    return [name for name, module in model.named_modules() if _is_linear(module) and name not in names]


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    weight = module._parameters.get("weight")
    no_product = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd)
    return weight is not None and weight.dim() == 2 and not isinstance(module, no_product)


def cache_spec(model: nn.Module) -> KvCacheSpec | None:
    """How the model's cache of keys and values is quantized."""
    return next((cache.spec for _, cache in caches(model)), None)


def holds_cache(format: str, spec: KvCacheSpec) -> bool:
    """Whether checkpoints of ``format`` tell engines of such a cache, with the scales that it has."""
    return format in _TELL_OF_CACHES and holds_kv_cache(spec)


def cache_note(spec: KvCacheSpec | None, format: str) -> str:
    """A sentence where checkpoints of ``format`` do not tell engines of the cache; else empty."""
    if spec is None or holds_cache(format, spec):
        return ""
    return f"The cache ({spec}) is a setting of the engine; a checkpoint in {format} does not hold it."


def cache_scales(model: nn.Module, format: str = "compressed-tensors") -> dict[str, Tensor]:
    """``k_scale`` and ``v_scale`` of each attention layer, as engines look for them; none for a cache that they set up, or
    in a format whose readers have no place for them.

    Raises:
        UserError: One has none, since it was not calibrated.
    """
    tensors = {}
    for name, cache in caches(model):
        if not holds_cache(format, cache.spec):
            continue
        if not cache.calibrated:
            raise UserError(
                f"The cache of {name} must have scales to be exported, but no batch was calibrated that reached it with "
                "anything but zeros; give torchqat.calibrate such batches."
            )
        shape = (-1, 1, 1) if cache.spec.key.granularity == "head" else (1,)
        for leaf in SCALE_NAMES:
            scale = getattr(cache, leaf).reshape(shape)
            if format == "modelopt":  # beside the projection, and a scalar
                tensors[f"{name}.{leaf[0]}_proj.{leaf}"] = scale.reshape(()) if scale.numel() == 1 else scale
            else:
                tensors[f"{name}.{leaf}"] = scale
    return tensors


def float_tensors(
    model: nn.Module, plan: CheckpointPlan | None = None, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """What stays unquantized: every other parameter and buffer once, tied ones under their first name.

    Of an outline, without weights, those that are one parameter are tied.

    Raises:
        UserError: ``dtype`` cannot hold a parameter.
    """
    planned = plan.layers if plan is not None else []
    left_out = {layer.name if layer.type == QuantExperts.kind else f"{layer.name}.weight" for layer in planned}
    left_out |= other_names(model, left_out) | _training_state(model)
    seen: set[tuple[int, torch.Size]] = set()
    for name, kept in model.state_dict(keep_vars=True).items():
        if name in left_out or name.rpartition(".")[2] == "qat_step":
            continue
        tensor = kept.detach()
        identity = (id(kept) if tensor.is_meta else local(tensor).data_ptr(), tensor.shape)
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        full = whole(tensor)
        if dtype is not None and full.is_floating_point():
            # Masks are buffers, and as well off with an infinity.
            full = held_in(name, full, dtype) if isinstance(kept, nn.Parameter) else full.to(dtype)
        yield name, full


def _training_state(model: nn.Module) -> set[str]:
    """What ``prepare`` and ``Schedule`` add, and no reader expects."""
    found = set()
    for name, module in model.named_modules(remove_duplicate=False):
        leaves = (
            STATE_NAMES if isinstance(module, QuantLayer) else CACHE_NAMES if isinstance(module, QuantKvCache) else ()
        )
        found |= {f"{name}.{leaf}" if name else leaf for leaf in leaves}
    return found
