"""What a weight may be rounded to instead, as widths: an integer's bits, or the word of recipes for any other type."""

from collections.abc import Sequence
from itertools import chain

from torchqat._library import Plan, QuantSpec, weight_of_type
from torchqat.errors import UserError

# 2 to 8, integers on the layer's own grid; "nvfp4" and the like; "float", which is not rounded.
Width = int | str

IN_FLOAT = "float"
# Tried where the plan is of integers, and beside the types of any other plan.
WIDTHS = (2, 3, 4, 8)
_WIDER = ("mxfp8_e4m3", 8)


def width_of(word: Width) -> Width:
    """The width that a word means: ``8`` or ``int8`` are 8 bits."""
    text = str(word).removeprefix("int")
    return int(text) if text.isdigit() else str(word)


def word_of(width: Width) -> str:
    """As recipes spell it."""
    return f"int{width}" if isinstance(width, int) else width


def title_of(width: Width) -> str:
    """For people: ``INT8``, ``NVFP4``."""
    return word_of(width).upper()


def own_width(spec: QuantSpec) -> Width:
    """That of a weight as it is planned."""
    return width_of(spec.type_name)


def checked_widths(words: Sequence[Width]) -> list[Width]:
    """The widths that ``words`` mean, each once.

    Raises:
        UserError: A word is none.
    """
    widths = list(dict.fromkeys(width_of(word) for word in words))
    try:
        for width in widths:
            if width != IN_FLOAT:
                weight_of_type(QuantSpec(8), word_of(width))
    except ValueError as error:
        raise UserError(str(error)) from error
    return widths


def usual_widths(plan: Plan) -> list[Width]:
    """What is tried where nobody says: 2, 3, 4 and 8 bits of integers; else the types of the plan, wider ones, and none."""
    specs = [layer.weight for layer in plan.layers if layer.weight]
    if all(spec.takes_widths for spec in specs):
        return list(WIDTHS)
    return list(dict.fromkeys(chain(_own_widths(specs), _WIDER, [IN_FLOAT])))


def compared_widths(plan: Plan) -> list[Width]:
    """Those of a report: the plan's least and 8 bits; where not all are integers, all of the plan's, and 8 bits."""
    specs = [layer.weight for layer in plan.layers if layer.weight]
    if specs and all(spec.takes_widths for spec in specs):
        return sorted({min(spec.bits for spec in specs), 8})
    return list(dict.fromkeys([*_own_widths(specs), 8]))


def _own_widths(specs: list[QuantSpec]) -> list[Width]:
    """Those of the fewest bits first."""
    return [own_width(spec) for spec in sorted(specs, key=lambda spec: (spec.bits, spec.type_name))]
