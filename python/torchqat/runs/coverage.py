"""How much of a model a plan quantizes, and what its weights take when those that it leaves are counted, too."""

from torchqat._library import Plan
from torchqat.reports.report import Variant


def coverage(plan: Plan) -> list[str]:
    """Which share of the weights is quantized, and what is left in floating point, one sentence a reason."""
    lines = plan.coverage.splitlines()
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def bits_over_all(plan: Plan, bits: dict[str, float], stored_bits: int) -> float:
    """Bits a weight over all weights that are multiplied.

    Args:
        plan: Of the model.
        bits: Bits a weight of its quantized layers, by name, scales and zero points included.
        stored_bits: Of an element of the others.
    """
    layers = [layer for layer in plan.layers if layer.multiplied]
    elements = {layer.name: layer.elements for layer in layers}
    quantized = sum(elements[name] * bits.get(name, stored_bits) for name in elements)
    left = sum(weight.elements for weight in plan.left if weight.multiplied)
    return (quantized + left * stored_bits) / max(1, sum(elements.values()) + left)


def budget_of_layers(plan: Plan, bits_per_weight: float, stored_bits: int) -> float:
    """What quantized layers may take on average for all weights that are multiplied to take ``bits_per_weight``."""
    left = sum(weight.elements for weight in plan.left if weight.multiplied)
    return (bits_per_weight * plan.multiplied - left * stored_bits) / max(1, plan.quantized_multiplied)


def size_of_variant(variant: Variant) -> float:
    """What mode auto holds against its limit: bits a weight over all that are multiplied."""
    return variant.bits_per_weight if variant.bits_over_all is None else variant.bits_over_all
