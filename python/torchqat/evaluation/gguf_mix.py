"""The best mix of llama.cpp's types for a GGUF file of a given size, from how much each layer suffers from each."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from torchqat._library import CheckpointPlan, LayerPlan, Plan, find_format, retyped
from torchqat.checkpoints.formats.gguf import size_beside_layers
from torchqat.errors import UserError
from torchqat.evaluation.mixed_widths import common_widths, least_kl
from torchqat.evaluation.number_types import IN_FLOAT, Width, own_width, word_of
from torchqat.evaluation.sensitivity import LayerSensitivity, unmeasured

_K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
# What llama.cpp has in their place where 256 does not divide a layer, and the next smaller one.
_IN_PLACE = ("q4_0", "q5_0", "q5_1", "q8_0")


@dataclass(frozen=True)
class GgufMix:
    """Types for the layers of a model, and what becomes of its file.

    Attributes:
        types: By layer.
        size: Bits a weight of all tensors of the file, which is what llama.cpp prints of it.
        kl: The sum of the layers' own, in nats a token.
    """

    types: dict[str, Width]
    size: float
    kl: float


def types_of_gguf(plan: Plan) -> list[Width]:
    """What is tried for the layers of ``plan``: K-quants, what stands in for them, and the types that it has."""
    specs = [layer.weight for layer in plan.layers if layer.weight]
    whole = all(layer.in_features % 256 == 0 for layer in plan.layers if layer.weight)
    return list(dict.fromkeys([*_K_QUANTS, *(() if whole else _IN_PLACE), *map(own_width, specs)]))


def check_gguf_size(model: nn.Module, plan: Plan, types: Sequence[Width], bits_per_weight: float) -> None:
    """Whether ``types`` give a file of ``model`` that is no larger, before anything is measured.

    Raises:
        UserError: They do not, or no layer can have one of them, or llama.cpp knows no such model.
    """
    GgufSize(model, plan, unmeasured(plan, types)).chosen(bits_per_weight)


class GgufSize:
    """Mixes of types for a file of ``model``, each layer of which may have a type of its own.

    Args:
        model: A float model, which may be an outline.
        plan: Whose layers are to be quantized; the rest is F16 and F32, as ``export`` writes it.
        layers: What was measured of them.

    Raises:
        UserError: llama.cpp knows no such model.
    """

    def __init__(self, model: nn.Module, plan: Plan, layers: Sequence[LayerSensitivity]):
        self._groups = _sharing(model, layers)
        self._plans = {layer.name: layer for layer in plan.layers}
        measured = CheckpointPlan([self._plans[layer.name] for layer in layers], [], None)
        elements, self._fixed = size_beside_layers(model, measured)
        self.elements = elements + sum(group[0].elements for group in self._groups)

    def chosen(self, bits_per_weight: float) -> GgufMix:
        """The types for which the KLs are least in sum, the file's tensors being within ``bits_per_weight``.

        Raises:
            UserError: The smallest types make a larger file.
        """
        shared = [(group, self._held(group)) for group in self._groups]
        budget = int(bits_per_weight * self.elements) - self._fixed
        found, least = least_kl(shared, lambda group, one: self._bits(group[0], one), budget)
        if found is None:
            raise UserError(
                f"gguf-size must be at least {self._size(least):.3f} bits a weight, of which "
                f"{self._fixed / self.elements:.3f} are what is not quantized, but is {bits_per_weight}."
            )
        return self._mix(found)

    def of_plan(self) -> GgufMix | None:
        """The plan's own types, where all of them were measured."""
        types = {layer.name: own_width(layer.spec) for group in self._groups for layer in group}
        measured = all(types[layer.name] in layer.kl for group in self._groups for layer in group)
        return self._mix(types) if measured else None

    def _mix(self, types: dict[str, Width]) -> GgufMix:
        bits = sum(self._bits(group[0], types[group[0].name]) for group in self._groups)
        kl = sum(layer.kl[types[layer.name]] for group in self._groups for layer in group)
        return GgufMix(types, self._size(bits), kl)

    def _held(self, group: list[LayerSensitivity]) -> list[Width]:
        """The types that were measured and that a file has."""
        held = [one for one in common_widths(group) if not self._refusal(group[0], one)]
        if not held:
            why = self._refusal(group[0], common_widths(group)[0])
            raise UserError(f"gguf has none of the types that were measured for {group[0].name}: {why}.")
        return held

    def _refusal(self, layer: LayerSensitivity, type: Width) -> str:
        return "" if type == IN_FLOAT else find_format("gguf").refusal(self._planned(layer, type))

    def _planned(self, layer: LayerSensitivity, type: Width) -> LayerPlan:
        own = self._plans[layer.name]
        weight = own.weight if type == own_width(own.weight) else retyped(own, word_of(type), "float16").weight
        return LayerPlan(own.name, own.in_features, own.out_features, weight, None, own.type)

    def _bits(self, layer: LayerSensitivity, type: Width) -> int:
        if type == IN_FLOAT:
            return 16 * layer.elements
        own = self._plans[layer.name]
        weight = self._planned(layer, type).weight
        return own.matrices * find_format("gguf").size_of_weight(weight, own.out_features, own.in_features)

    def _size(self, bits: int) -> float:
        return (bits + self._fixed) / self.elements


def _sharing(model: nn.Module, layers: Sequence[LayerSensitivity]) -> list[list[LayerSensitivity]]:
    """Layers of one weight, such as a tied head and its embedding, together: they are one tensor of one type."""
    modules = dict(model.named_modules())
    groups: dict[object, list[LayerSensitivity]] = {}
    for layer in layers:
        weight = getattr(modules.get(layer.name), "weight", None)
        groups.setdefault(layer.name if weight is None else id(weight), []).append(layer)
    return list(groups.values())
