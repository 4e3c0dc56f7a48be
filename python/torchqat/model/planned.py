"""What ``prepare`` was given, so that a ``Schedule`` with the rules of another recipe is told from one with its own."""

from typing import Any

from torch import nn

from torchqat._library import LayerInfo, Plan, Recipe
from torchqat._library import make_plan as _make_plan
from torchqat.errors import UserError

# Of a layer that no rule quantizes.
_FLOAT = ("float", "float")


class Planned:
    """The layers that a recipe was planned for, before they were replaced.

    Copies of a model share it, pickles are without it: a model that was loaded has the layers that it says it has.
    """

    def __init__(self, layers: list[LayerInfo] | None = None, parameters: int = 0):
        self.layers, self.parameters = layers, parameters
        self.specs: dict[str, tuple[str, str]] = {}

    def plan(self, recipe: Recipe) -> Plan:
        """What ``recipe`` means for these layers."""
        return _make_plan(recipe, self.layers, self.parameters)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Planned":
        return self

    def __reduce__(self) -> tuple[type["Planned"], tuple[()]]:
        return Planned, ()


def note_plan(model: nn.Module, planned: Planned, plan: Plan) -> None:
    """Note what was ``planned`` for ``model`` by a recipe."""
    planned.specs = _specs(plan)
    model.qat_planned = planned


def require_recipe(recipe: object, others: str = "") -> None:
    """Raises UserError if ``recipe`` is none, and none of the ``others`` that would do."""
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"recipe must be what torchqat.load_recipe or parse_recipe gives{others}, but is {type(recipe).__name__}."
        )


def check_same_rules(model: nn.Module, recipe: Recipe) -> None:
    """Whether ``recipe`` asks of the layers of ``model`` what the recipe did that ``prepare`` was given.

    Raises:
        RecipeError: Its rules do not fit the model.
        UserError: It asks something else, which would not happen, or is no recipe.
    """
    require_recipe(recipe)
    for _, module in model.named_modules():
        planned = vars(module).get("qat_planned")
        if planned is None or planned.layers is None:
            continue
        here = _specs(planned.plan(recipe))
        for name in sorted(planned.specs.keys() | here.keys()):
            prepared, asked = planned.specs.get(name, _FLOAT), here.get(name, _FLOAT)
            for what, old, new in zip(("weight", "input"), prepared, asked, strict=True):
                if old != new:
                    raise UserError(
                        "A schedule must be given the recipe that prepare was given, or one with the same layers, but the "
                        f"{what} of {name} is {new} by this one, and was prepared as {old}."
                    )


def _specs(plan: Plan) -> dict[str, tuple[str, str]]:
    """In words, by layer: how its weight and its input are rounded."""
    return {layer.name: (str(layer.weight or "float"), str(layer.input or "float")) for layer in plan.layers}
