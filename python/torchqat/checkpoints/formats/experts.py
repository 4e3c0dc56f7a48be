"""Quantized experts on disk: engines read each expert's matrices as linear layers of their own."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from torchqat._library import Format, LayerPlan, QuantizedWeights
from torchqat.errors import UserError
from torchqat.model.disk_names import DiskNames, Part
from torchqat.model.experts import expert_weights

# They hold experts that are one tensor on disk, too.
_HOLDS_STACKS = ("safetensors", "mxfp4", "dense")


@dataclass(frozen=True)
class ExpertPart:
    """Rows of a parameter's matrices, one below the other, that are a linear layer on disk.

    Attributes:
        name: Of that layer.
        begin: The first row.
        end: The one after the last.
    """

    name: str
    begin: int
    end: int


def expert_parts(model: nn.Module, names: DiskNames, name: str, format: Format) -> list[ExpertPart]:
    """What the parameter ``name`` of experts is on disk; nothing where it is one tensor there, too.

    Raises:
        UserError: Experts that are no linear layers on disk have no place in ``format``.
    """
    holder, _, leaf = name.rpartition(".")
    weights = expert_weights(model.get_submodule(holder), leaf)
    rows = weights.oriented.shape[1]
    parts = names.parts(name)
    if len(parts) == 1 and parts[0].index in ((), (slice(None),) * 3):
        if format.name not in _HOLDS_STACKS:
            raise UserError(
                f"{format.name} cannot hold {name}, because transformers keeps all experts in one tensor on disk, which no "
                "engine reads in these codes; safetensors and dense can, and mxfp4 of gpt_oss in MXFP4."
            )
        return []
    found = [_rows_of(part, rows, weights.transposed) for part in parts]
    if None in found or not found:
        raise UserError(
            f"{name} lies on disk in another order than in the model; leave it by a rule with weight: float."
        )
    return found


def check_experts_found(model: nn.Module) -> None:
    """Whether transformers finds the experts of ``model`` in a compressed-tensors checkpoint under the names of the model.

    Raises:
        UserError: It puts other modules in their place there, with other names, whose weights it would make up.
    """
    base = sys.modules.get("transformers.quantizers.base")  # a model of transformers has imported it
    others = getattr(base, "MODULES_TO_PATCH_FOR_QUANTIZATION", {})
    for name, module in model.named_modules():
        classes = [kind.__name__ for kind in type(module).__mro__]
        found = next((others[kind] for kind in classes if kind in others), None)
        if found is not None and "compressed-tensors" in found.get("quantization_methods", ()):
            raise UserError(
                f"compressed-tensors cannot hold a {type(model).__name__}, because transformers looks for a linear layer of "
                f"each expert in place of {name} there, and makes up what it does not find; safetensors and dense can."
            )


def _rows_of(part: Part, rows: int, transposed: bool) -> ExpertPart | None:
    """The part as whole rows of the expert that it is of; ``None`` if it is none."""
    if len(part.index) != 3 or not isinstance(part.index[0], int) or part.transposed != transposed:
        return None
    outputs, inputs = part.index[:0:-1] if transposed else part.index[1:]
    if inputs != slice(None) or not isinstance(outputs, slice) or not part.name.endswith(".weight"):
        return None
    begin, end, _ = outputs.indices(rows)
    first = part.index[0] * rows
    return ExpertPart(part.name.removesuffix(".weight"), first + begin, first + end)


def cut(layer: QuantizedWeights, parts: list[ExpertPart]) -> Iterator[QuantizedWeights]:
    """The linear layers that ``layer`` is on disk.

    Raises:
        UserError: Blocks of a scale lie across two of them.
    """
    for part in parts:
        try:
            yield layer.rows(part.name, part.begin, part.end)
        except ValueError as error:
            raise UserError(str(error)) from error


def planned(layer: LayerPlan, parts: list[ExpertPart]) -> list[LayerPlan]:
    """The plans of those linear layers.

    Raises:
        UserError: Blocks of a scale would lie across two of them.
    """
    found = []
    for part in parts:
        height, rows = layer.weight.block[0], part.end - part.begin
        if height > 0 and (part.begin % height or rows % height):
            raise UserError(f"block rows must divide {part.name}, which has {rows}, but are {height}.")
        found.append(LayerPlan(part.name, layer.in_features, rows, layer.weight, layer.input))
    return found
