"""A recipe that takes every layer it can of a model, and what it leaves out where torchqat says that it must."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torchqat
from torch import nn

# On this grid and with these scales a layer goes into every format that has 4 bits.
WEIGHT = "dtype: int4, grid: full, scale: mse, scale_dtype: float16"
GROUP = 32
ATTEMPTS = 400
FLOAT = "float"
GROUPS = f"{{{WEIGHT}, group_size: {GROUP}}}"
CHANNELS = f"{{{WEIGHT}, granularity: channel}}"


def recipe(rules: dict[str, str], method: str = "gptq", allow_float: bool = False, weight: str = GROUPS):
    """``weight`` for ``*``, and ``rules``: what the weight of a layer is instead, by its name."""
    allowed = ", allow_float: true" if allow_float else ""
    lines = [f'  - {{match: "*", weight: {weight}{allowed}}}']
    lines += [f'  - {{match: "{name}", weight: {own}}}' for name, own in rules.items()]
    text = "\n".join(["version: 1", "layers:", *lines, f"initialize: {{method: {method}}}"])
    return torchqat.parse_recipe(text, "recipe")


@dataclass
class Planned:
    """A plan, and the recipe that it took.

    Attributes:
        plan: What torchqat makes of it.
        rules: What is not as ``*`` says, by layer: those that a group does not divide have a scale a channel.
        refusal: Why weights that no layer holds had to be allowed in floating point, where torchqat asks for that.
    """

    plan: object
    rules: dict[str, str]
    refusal: str = ""

    def recipe(self, rules: dict[str, str], method: str):
        """As planned, but for ``rules``."""
        return recipe(rules, method, bool(self.refusal))


def planned(model: nn.Module) -> Planned:
    """The plan of all that torchqat can quantize of ``model``.

    Raises:
        RecipeError: Anything else is wrong with the recipe.
    """
    rules: dict[str, str] = {}
    refusal = ""
    for _ in range(ATTEMPTS):
        try:
            return Planned(torchqat.make_plan(model, recipe(rules, allow_float=bool(refusal))), rules, refusal)
        except torchqat.RecipeError as error:
            asked = "allow_float: true" in str(error) and not refusal
            found = set() if asked or "group_size must divide" not in str(error) else _indivisible(model, refusal)
            if not asked and not found - rules.keys():
                raise
            rules |= dict.fromkeys(sorted(found), CHANNELS)
            refusal = refusal or (_with("allow_float: true", error) if asked else "")
    raise AssertionError(f"{ATTEMPTS} recipes in a row were refused.")


def _with(words: str, error: torchqat.RecipeError) -> str:
    """The sentences that have these words."""
    return "\n".join(line for line in str(error).splitlines() if words in line)


def _indivisible(model: nn.Module, refusal: str) -> set[str]:
    """The layers that groups do not divide."""
    plan = torchqat.make_plan(model, recipe({}, allow_float=bool(refusal), weight=CHANNELS))
    return {layer.name for layer in plan.layers if layer.in_features % GROUP}


def without(plan, rules: dict[str, str], sentence: str) -> dict[str, str] | None:
    """``rules`` that leave in floating point the layer which ``sentence`` names, if it names one, or all of its type."""
    left = [layer for layer in plan.layers if layer.weight and rules.get(layer.name) != FLOAT]
    named = [layer for layer in left if re.search(rf"(?<![\w.]){re.escape(layer.name)}(?![\w.]*\w)", sentence)]
    types = {layer.type for layer in named if f"of the type {layer.type}" in sentence}
    found = [layer for layer in left if layer in named or layer.type in types]
    return {**rules, **{layer.name: FLOAT for layer in found}} if 0 < len(found) < len(left) else None


def said(action: Callable[[], object]) -> str | None:
    """What torchqat said against it, ``None`` where it said nothing. Other exceptions are passed on."""
    try:
        action()
    except (torchqat.UserError, torchqat.RecipeError) as error:
        return str(error)
    return None
