"""The best mix of widths under a budget, from how much each layer suffers from each, and the recipe that says so."""

import re
from collections.abc import Sequence

from torchqat._library import QuantSpec, allocate_widths, fused_layers
from torchqat.errors import UserError
from torchqat.evaluation.sensitivity import LayerSensitivity


def mixed_widths(layers: Sequence[LayerSensitivity], bits_per_weight: float) -> dict[str, int]:
    """The width of each layer for which the measured KLs are least in sum, within ``bits_per_weight`` on average.

    Layers that engines fuse (q, k and v; gate and up) share theirs. Scales and zero points count.

    Raises:
        UserError: Even the smallest widths need more.
    """
    groups: dict[str, list[LayerSensitivity]] = {}
    for layer in layers:
        groups.setdefault(_fused_name(layer.name), []).append(layer)
    widths = sorted(layers[0].kl)
    options = [
        [(w, sum(layer.kl[w] for layer in group), sum(layer.size(w) for layer in group)) for w in widths]
        for group in groups.values()
    ]
    elements = sum(layer.elements for layer in layers)
    least = sum(min(size for _, _, size in group) for group in options)
    budget = int(bits_per_weight * elements)
    if least > budget:
        raise UserError(f"budget must be at least {least / elements:.3f} bits per weight, but is {bits_per_weight}.")
    chosen = allocate_widths(options, budget)
    return {layer.name: widths[index] for group, index in zip(groups.values(), chosen, strict=True) for layer in group}


def mixed_recipe(text: str, layers: Sequence[LayerSensitivity], widths: dict[str, int]) -> str:
    """The recipe ``text`` with a rule for each width that differs from the planned one, after its own rules."""
    rules = []
    for layer in layers:
        if widths[layer.name] != layer.spec.bits:
            rules.append(f'  - match: "{layer.name}"\n    weight: {_spec_text(layer.spec, widths[layer.name])}\n')
    lines = text.splitlines(keepends=True)
    begin = next(i for i, line in enumerate(lines) if re.match(r"layers\s*:", line))
    first = next((line.strip() for line in lines[begin + 1 :] if line.split("#")[0].strip()), "")
    if lines[begin].split("#")[0].strip() != "layers:" or not first.startswith("-"):
        raise UserError("To write a mixed recipe, its layers must be a list in lines of its own, but are not.")
    last = next((i for i in range(begin + 1, len(lines)) if re.match(r"[A-Za-z_]", lines[i])), len(lines))
    while last > begin + 1 and not lines[last - 1].strip():
        last -= 1
    head = "".join(lines[:last])
    return (head if head.endswith("\n") else head + "\n") + "".join(rules) + "".join(lines[last:])


def _spec_text(spec: QuantSpec, bits: int) -> str:
    parts = [f"dtype: int{bits}"]
    if spec.granularity == "group":
        parts.append(f"group_size: {spec.group_size}")
    elif spec.granularity == "block":
        parts.append(f"block: [{spec.block[0]}, {spec.block[1]}]")
    else:
        parts.append(f"granularity: {spec.granularity}")
    parts.append(f"grid: {spec.grid}" if spec.symmetric else "symmetric: false")
    return "{" + ", ".join([*parts, f"scale: {spec.scale}", f"scale_dtype: {spec.scale_dtype}"]) + "}"


def _fused_name(name: str) -> str:
    """Of the matrix that engines make of the layer and others, which must then share a width; of all experts, one."""
    if ".experts." in f".{name}":
        return "experts"
    parent, _, leaf = name.rpartition(".")
    group = next((group for group in fused_layers() if leaf in group), (leaf,))
    return f"{parent}.{'+'.join(group)}"
