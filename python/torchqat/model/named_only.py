"""Layers that no wide rule should reach: output heads, what a task adds, routers, embeddings and what is tied to them."""

import re
import sys
from collections.abc import Iterator

from torch import nn

from torchqat.model.towers import output_head

# A part of a name that says "router": gate, shared_expert_gate, wg, router, router_mlp, gating; not gate_proj.
_ROUTER = re.compile(r"router|gating|^wg$|(^|_)gate$")


def named_only(model: nn.Module) -> dict[int, str]:
    """By the ``id`` of a module, what it is, for those that only a rule with their full name reaches."""
    found: dict[int, str] = {}
    for module in _adapters(model):
        found[id(module)] = "adapter of peft"
    for module in _routers(model):
        found[id(module)] = "router"
    for module in _outside_of_base(model):
        found[id(module)] = "head of the task"
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            found[id(module)] = "embedding"
        elif name.split(".")[-1] == "lm_head" or module is output_head(model):
            found[id(module)] = "output head"
        elif id(getattr(module, "weight", None)) in embeddings:
            found[id(module)] = "tied to an embedding"
    return found


def _outside_of_base(model: nn.Module) -> Iterator[nn.Module]:
    """What transformers' model for a task has beside its base model."""
    base = getattr(model, getattr(type(model), "base_model_prefix", None) or "", None)
    if not isinstance(base, nn.Module):
        return
    inside = {id(module) for module in base.modules()}
    for module in model.modules():
        if id(module) not in inside and module is not model:
            yield module


def _adapters(model: nn.Module) -> Iterator[nn.Module]:
    """What peft has put beside the layers that it adapts."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for layer in model.modules() if tuners is not None else []:
        if isinstance(layer, tuners.BaseTunerLayer):
            for name in layer.adapter_layer_names:
                held = getattr(layer, name, None)
                yield from held.modules() if isinstance(held, nn.Module) else ()


def _routers(model: nn.Module) -> Iterator[nn.Module]:
    """What stands beside experts and chooses among them, or weighs them: by its name, or by an output for each."""
    for parent in model.modules():
        counts = [count for name, child in parent.named_children() if (count := _experts(name, child))]
        for name, module in parent.named_modules() if counts else []:
            parts = name.split(".")
            if not name or _is_expert(parts[0], parent.get_submodule(parts[0])):
                continue
            chooses = len(parts) == 1 and _rows(module) in (1, *counts)
            if chooses or any(_ROUTER.search(part) for part in parts) or "Router" in type(module).__name__:
                yield module


def _is_expert(name: str, child: nn.Module) -> bool:
    word = f"{name} {type(child).__name__}".lower()
    return "expert" in word and "shared" not in word and "gate" not in name and "router" not in word


def _experts(name: str, child: nn.Module) -> int:
    """How many experts a module holds; 0 if none."""
    if not _is_expert(name, child):
        return 0
    if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
        return len(child)
    return max((p.shape[0] for p in child.parameters(recurse=False) if p.dim() == 3), default=0)


def _rows(module: nn.Module) -> int:
    weight = module._parameters.get("weight")
    return weight.shape[0] if weight is not None and weight.dim() == 2 else 0
