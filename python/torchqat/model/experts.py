"""Which parameters are the matrices of a mixture's experts, and which way round they lie."""

from torch import Tensor, nn

from torchqat.layers.experts import ExpertWeights
from torchqat.layers.stand_ins import stand_in_of


def matrix_of(model: nn.Module, name: str) -> Tensor:
    """The float weight that a plan calls ``name``, as the matrix that is quantized: ``[rows, cols]``."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    if leaf in holder._parameters:
        return expert_weights(holder, leaf).oriented.flatten(0, 1)
    layer = model.get_submodule(name)
    return stand_in_of(layer)(layer, None, None).master


def expert_weights(holder: nn.Module, leaf: str) -> ExpertWeights | None:
    """The parameter ``leaf`` of ``holder`` as matrices of experts; ``None`` if it is none, or its direction unknown."""
    weight = holder._parameters[leaf]
    if "forward" in vars(holder):
        return None  # it would not find what lies in place of the parameter
    if weight.dim() != 3 or weight.shape[0] < 2 or "expert" not in type(holder).__name__.lower():
        return None
    transposed = _is_transposed(holder, leaf, weight)
    return None if transposed is None else ExpertWeights(holder, leaf, transposed)


def _is_transposed(holder: nn.Module, leaf: str, weight: Tensor) -> bool | None:
    """By what transformers notes of it, else by the sizes that the module knows: they must name one direction alone."""
    noted = getattr(holder, "is_transposed", None)
    if isinstance(noted, bool):
        return noted
    sizes = (getattr(holder, "output_size", None), getattr(holder, "input_size", None))
    if None not in sizes:
        return _direction(weight, sizes)
    hidden = getattr(holder, "hidden_size", None)
    directions = {
        _by_hidden(name, p, hidden) for name, p in holder._parameters.items() if p is not None and p.dim() == 3
    }
    known = directions - {None}
    return known.pop() if len(known) == 1 else None


def _by_hidden(leaf: str, weight: Tensor, hidden: int | None) -> bool | None:
    """Down projections give tokens, the others take them."""
    if hidden not in weight.shape[1:] or weight.shape[1] == weight.shape[2]:
        return None
    return (weight.shape[1] == hidden) == ("down" not in leaf)


def _direction(weight: Tensor, sizes: tuple[int, int]) -> bool | None:
    found = tuple(weight.shape[1:])
    if sizes[0] == sizes[1] or found not in (sizes, sizes[::-1]):
        return None
    return found != sizes
