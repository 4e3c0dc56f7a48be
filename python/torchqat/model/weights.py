"""Every weight of a model as the planner wants it: the layers that can be quantized, and what cannot with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from torchqat._library import LayerInfo
from torchqat.errors import UserError
from torchqat.layers.conv1d_of_transformers import QuantConv1D
from torchqat.layers.experts import QuantExperts
from torchqat.layers.stand_ins import is_layer, stand_in_of, why_not, why_not_of
from torchqat.model.blocks import find_blocks
from torchqat.model.experts import expert_weights
from torchqat.model.multiplied import multiplied_parameters
from torchqat.model.named_only import named_only
from torchqat.model.towers import beside_language_model


def plannable_layers(model: nn.Module) -> list[LayerInfo]:
    """The weights of ``model`` that have two dimensions or more, in model order.

    Those that no quantized layer stands in for are marked as not plannable, with the reason. Output heads, what a task
    adds to a model, routers, embeddings and layers whose weight is tied to one are marked so that only a rule with their
    full name reaches them. Blocks are those of the language model, where others read images or sounds, without their
    depthwise convolutions: a few weights a channel, which no group divides and no engine holds in codes.

    Raises:
        UserError: A layer makes its weight in its first forward, which has not been.
    """
    _check_there(model)
    weights, apart, names = list(_weights(model)), named_only(model), _names(model)
    beside = {place: f"in {part}, beside the language model" for place, part in beside_language_model(model).items()}
    layers = tuple({type(found.module) for found in weights if found.is_layer})
    blocks = tuple(f"{name}." for name, block in find_blocks(model, layers) if id(block) not in beside)
    multiplied = _multiplied(model, weights)
    return [
        LayerInfo(
            found.name,
            found.kind,
            found.columns,
            found.rows,
            by_name_only=id(found.module) in apart,
            why=_joined(
                apart.get(id(found.module)),
                found.why,
                _DEPTHWISE if found.is_depthwise else "",
                beside.get(id(found.module)),
            ),
            plannable=not found.why,
            multiplied=id(found.weight) in multiplied and not _is_tied(found, multiplied),
            matrices=found.matrices,
            counted=not _is_tied(found, multiplied),
            in_block=found.name.startswith(blocks) and not found.is_depthwise,
            aliases=[name for name in names[id(found.module)] if found.is_layer and name != found.name],
        )
        for found in weights
    ]


def _joined(*reasons: str | None) -> str:
    return "; ".join(reason for reason in reasons if reason)


def count_parameters(model: nn.Module) -> int:
    """The elements of all parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


# Why blocks are without it.
_DEPTHWISE = "a depthwise convolution, which is not among blocks"


def other_names(model: nn.Module, weights: set[str]) -> set[str]:
    """What ``weights``, such as ``head.weight``, are called as well, themselves among it.

    That is by other names of their module, and by modules of its class that share them; not by an embedding that a head is
    tied to, which a checkpoint may hold otherwise.
    """
    names: dict[tuple, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if (weight := module._parameters.get("weight")) is not None:
            names.setdefault((id(weight), type(module)), []).append(f"{name}.weight")
    return {name for found in names.values() if not weights.isdisjoint(found) for name in found}


@dataclass
class _Weight:
    """A matrix, or several in one parameter, and the module that holds it.

    Attributes:
        kind: As recipes call the module's class.
        why: It cannot be quantized; empty where it can.
        is_layer: Whether the module is a layer, which the weight has its name from.
    """

    name: str
    module: nn.Module
    weight: Tensor
    kind: str
    why: str
    is_layer: bool
    columns: int
    rows: int

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution each of whose channels has a few weights of its own."""
        groups = getattr(self.module, "groups", 1) if self.is_layer else 1
        return isinstance(self.module, nn.modules.conv._ConvNd) and groups == self.module.in_channels > 1

    @property
    def matrices(self) -> int:
        return self.weight.numel() // max(1, self.columns * self.rows)


def _weights(model: nn.Module) -> Iterator[_Weight]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        if is_layer(module):
            weight, why = module.weight, why_not(module)
            kind = type(module).__name__ if why else stand_in_of(module).kind
            rows = _outputs(module, kind)
            yield _Weight(name, module, weight, kind, why, True, weight.numel() // max(1, rows), rows)
        if not isinstance(module, nn.utils.parametrize.ParametrizationList):  # its layer is named already
            for leaf, weight in module._parameters.items():
                if weight is None or id(weight) in seen or sum(size > 1 for size in weight.shape) < 2:
                    continue
                if leaf == "weight" and is_layer(module):
                    continue
                seen.add(id(weight))
                full = f"{name}.{leaf}" if name else leaf
                yield _parameter(full, module, leaf, weight)


def _check_there(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise UserError(
                f"{name} must be there to be planned, but is made by the model's first forward: run the model on a batch "
                "before."
            )


def _outputs(layer: nn.Module, kind: str) -> int:
    if kind == QuantConv1D.kind:
        return layer.nf
    return layer.out_channels if kind.startswith("ConvTranspose") else layer.weight.shape[0]


def _parameter(name: str, module: nn.Module, leaf: str, weight: Tensor) -> _Weight:
    rows, columns = weight.shape[-2:]
    experts = expert_weights(module, leaf)
    if experts is not None and not why_not_of(weight):
        rows, columns = (columns, rows) if experts.transposed else (rows, columns)
        return _Weight(name, module, weight, QuantExperts.kind, "", False, columns, rows)
    kind = type(module).__name__
    why = f"a parameter of {kind}, which is no layer that torchqat knows"
    if is_layer(module):
        why = f"a parameter of a {kind} beside its weight"
    return _Weight(name, module, weight, kind, why, False, columns, rows)


def _multiplied(model: nn.Module, weights: list[_Weight]) -> set[int]:
    """The ``id`` of each weight that is multiplied; where that cannot be tried, of each that may be."""
    layers = {id(w.weight) for w in weights if not isinstance(w.module, nn.Embedding) and (w.is_layer or not w.why)}
    others = {id(w.weight) for w in weights if not w.is_layer and w.why and not w.name.endswith("bias")}
    if not others:
        return layers
    tried = multiplied_parameters(model)
    return layers | (others if tried is None else others & tried)


def _is_tied(found: _Weight, multiplied: set[int]) -> bool:
    """Whether it is an embedding whose weight a linear layer multiplies with, which counts it."""
    return isinstance(found.module, nn.Embedding) and id(found.weight) in multiplied


def _names(model: nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(id(module), []).append(name)
    return found
