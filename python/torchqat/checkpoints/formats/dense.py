"""Plain folders: the rounded weights as numbers, which load wherever the float model does."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, LayerPlan, QuantizedWeights
from torchqat.layers.prepared import quant_layers, weight_name


class Dense:
    """A format as those of the native library are; see ``formats/known.py``."""

    name = "dense"
    used_by = "whatever loads the float model"
    dtype: torch.dtype | None = None

    def refusal(self, layer: LayerPlan) -> str:
        """Why it cannot hold ``layer``, in words that follow "because"; empty when it can."""
        return "inputs are rounded, for which it has no place" if layer.input is not None else ""

    def check(self, plan: CheckpointPlan) -> None:
        """Raises ValueError, naming the layer, if it cannot hold one, or the cache."""
        check_layers(self, plan)

    def documents(self, plan: CheckpointPlan) -> dict[str, str]:
        """None: there is nothing to be known."""
        return {}


def check_layers(format: Any, plan: CheckpointPlan) -> None:
    """Whether ``format`` has a place for each of the layers, and for no less.

    Raises:
        ValueError: It has not; the layer is named.
    """
    if not plan.layers:
        raise ValueError(f"{format.name} needs at least one quantized layer, but there is none.")
    for layer in plan.layers:
        if why := format.refusal(layer):
            raise ValueError(f"{format.name} cannot hold {layer.name}, because {why}.")
    if plan.kv_cache is not None:
        raise ValueError(f"{format.name} has no place for a quantized cache of keys and values.")


def dense_tensors(
    model: nn.Module, layers: Iterable[QuantizedWeights], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The weights that ``layers`` stand for, by the names and in the shapes of the parameters of ``model``."""
    modules = dict(quant_layers(model))
    for layer in layers:
        module = modules[layer.name]
        weight = layer.dequantize(dtype or module.weight.dtype).to(module.weight.device)
        yield weight_name(layer.name, module), module.shaped(weight).contiguous()
