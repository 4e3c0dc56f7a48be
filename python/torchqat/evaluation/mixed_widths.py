"""The best mix of widths under a budget, from how much each layer suffers from each, and the recipe that says so."""

import re
from collections.abc import Callable, Sequence

from torchqat._library import LayerPlan, QuantSpec, allocate_widths, fused_layers, preset, retyped
from torchqat.errors import UserError
from torchqat.evaluation.number_types import IN_FLOAT, Width, own_width, title_of, word_of
from torchqat.evaluation.sensitivity import LayerSensitivity


def mixed_widths(layers: Sequence[LayerSensitivity], bits_per_weight: float) -> dict[str, Width]:
    """The width of each layer for which the measured KLs are least in sum, within ``bits_per_weight`` on average.

    Layers that engines fuse (q, k and v; gate and up) share theirs. Scales and zero points count.

    Args:
        layers: As ``sensitivity`` measured them.
        bits_per_weight: The most that is allowed, over the weights of ``layers``.

    Returns:
        Widths by the names of layers.

    Raises:
        UserError: Even the smallest widths need more.
    """
    groups: dict[str, list[LayerSensitivity]] = {}
    for layer in layers:
        groups.setdefault(_fused_name(layer.name), []).append(layer)
    shared = [(group, common_widths(group)) for group in groups.values()]
    elements = sum(layer.elements for layer in layers)
    found, least = least_kl(
        shared, lambda group, width: sum(layer.size(width) for layer in group), int(bits_per_weight * elements)
    )
    if found is None:
        raise UserError(f"budget must be at least {least / elements:.3f} bits per weight, but is {bits_per_weight}.")
    return found


def least_kl(
    shared: Sequence[tuple[list[LayerSensitivity], list[Width]]],
    size: Callable[[list[LayerSensitivity], Width], int],
    budget: int,
) -> tuple[dict[str, Width] | None, int]:
    """The width of each layer for which the KLs are least in sum, and the size of the smallest ones.

    Args:
        shared: Layers that have one width, and what that may be.
        size: Bits of such layers at a width.
        budget: Bits of all; where the smallest widths take more, there are none.
    """
    options = [
        [(i, sum(layer.kl[width] for layer in group), size(group, width)) for i, width in enumerate(widths)]
        for group, widths in shared
    ]
    least = sum(min(bits for _, _, bits in group) for group in options)
    if least > budget:
        return None, least
    chosen = zip(shared, allocate_widths(options, budget), strict=True)
    return {layer.name: widths[index] for (group, widths), index in chosen for layer in group}, least


def common_widths(group: list[LayerSensitivity]) -> list[Width]:
    """Those that each layer of ``group`` was measured at, the smallest first.

    Raises:
        UserError: There is none.
    """
    widths = [width for width in group[0].kl if all(width in layer.kl for layer in group)]
    if not widths:
        names = " and ".join(layer.name for layer in group)
        raise UserError(
            f"{names} must share a type, because engines fuse them, but none was measured that all can have."
        )
    return sorted(widths, key=lambda width: (group[0].size(width), title_of(width)))


def mixed_recipe(
    text: str, layers: Sequence[LayerSensitivity], widths: dict[str, Width], scale_dtype: str = "bfloat16"
) -> str:
    """The recipe ``text`` with a rule for each layer whose width differs from the planned one, after its own rules.

    Args:
        text: Of the recipe.
        layers: As measured.
        widths: As ``mixed_widths`` gives them.
        scale_dtype: Of the scales of integers in place of other types.
    """
    rules = [_rule(layer, widths[layer.name], scale_dtype) for layer in layers]
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


def _rule(layer: LayerSensitivity, width: Width, scale_dtype: str) -> str:
    """That makes ``layer`` be ``width``; empty where it is."""
    if width == own_width(layer.spec):
        return ""
    weight, kept = IN_FLOAT, None
    if width != IN_FLOAT:
        planned = LayerPlan(layer.name, layer.shape[1], layer.shape[0], layer.spec, layer.input)
        changed = retyped(planned, word_of(width), scale_dtype)
        weight, kept = _spec_text(changed.weight), changed.input
    rule = f'  - match: "{layer.name}"\n    weight: {weight}\n'
    if (kept is None) == (layer.input is None) and (kept is None or kept == layer.input):
        return rule
    return rule + f"    input: {IN_FLOAT if kept is None else '{' + _typed(kept) + '}'}\n"


def _spec_text(spec: QuantSpec) -> str:
    if spec.is_named or spec.type_name != spec.dtype:  # a type of its own
        return "{" + _typed(spec) + f", scale: {spec.scale}" + "}"
    parts = [f"dtype: {spec.dtype}"]
    if spec.granularity == "group":
        parts.append(f"group_size: {spec.group_size}")
    elif spec.granularity == "block":
        parts.append(f"block: [{spec.block[0]}, {spec.block[1]}]")
    else:
        parts.append(f"granularity: {spec.granularity}")
    parts.append(f"grid: {spec.grid}" if spec.symmetric else "symmetric: false")
    return "{" + ", ".join([*parts, f"scale: {spec.scale}", f"scale_dtype: {spec.scale_dtype}"]) + "}"


def _typed(spec: QuantSpec) -> str:
    """A type of recipes that says its groups and scales, but how powers of two are rounded."""
    rounded = spec.scale_dtype != preset(spec.type_name).scale_dtype
    return f"dtype: {spec.type_name}" + (f", scale_dtype: {spec.scale_dtype}" if rounded else "")


def _fused_name(name: str) -> str:
    """Of the matrix that engines make of the layer and others, which must then share a width; of all experts, one."""
    if ".experts." in f".{name}":
        return "experts"
    parent, _, leaf = name.rpartition(".")
    group = next((group for group in fused_layers() if leaf in group), (leaf,))
    return f"{parent}.{'+'.join(group)}"
