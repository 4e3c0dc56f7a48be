"""``QuantExperts``: the matrices of a mixture's experts, which lie in one parameter, rounded where their module reads it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from torchqat._library import LayerPlan
from torchqat.layers.made_class import reduce_made
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import whole
from torchqat.ops.runtime import release_all_but_the_largest

# The child of an experts module that holds what quantization adds to it.
STATE = "quantized"


@dataclass(frozen=True)
class ExpertWeights:
    """A parameter of a module that holds a matrix for each expert.

    Attributes:
        holder: The module.
        leaf: The parameter's name in it.
        transposed: Whether each matrix is ``[in, out]``, else ``[out, in]``.
    """

    holder: nn.Module
    leaf: str
    transposed: bool

    @property
    def weight(self) -> nn.Parameter:
        return self.holder._parameters[self.leaf]

    @property
    def oriented(self) -> Tensor:
        """The parameter as ``[experts, out, in]``."""
        return self.weight.transpose(-2, -1) if self.transposed else self.weight

    @property
    def training(self) -> bool:
        return self.holder.training


class QuantExperts(QuantLayer):
    """Fake quantization of one parameter ``[experts, out, in]`` or ``[experts, in, out]`` of a mixture's experts.

    The parameter stays where it is. While the module that holds it runs its own forward, whatever that is, it finds the
    rounded weights under the parameter's name. They are kept for that long: what autograd saves of them is rounded again
    in the backward.

    Called without arguments it gives the rounded weights, shaped like the parameter.
    """

    kind = "Experts"

    def _take(self, layer: ExpertWeights) -> None:
        self._holder, self.leaf, self.transposed = (layer.holder,), layer.leaf, layer.transposed
        self.weight_loaded = False  # by its holder, right before this layer loads its own state

    @property
    def weight(self) -> nn.Parameter:
        return self._holder[0]._parameters[self.leaf]

    @property
    def holder(self) -> nn.Module:
        """The module whose parameter it is."""
        return self._holder[0]

    def name_of(self, place: str) -> str:
        """That of the parameter."""
        return ".".join([*place.split(".")[:-2], self.leaf])

    def has_weight(self, state_dict: dict[str, Tensor], prefix: str) -> bool:
        loaded, self.weight_loaded = self.weight_loaded, False
        return loaded

    def plan(self, name: str) -> LayerPlan:
        rows, cols = self.matrix_shape
        experts = self.count
        return LayerPlan(name, cols, rows // experts, self.weight_spec, self.input_spec, self.kind, matrices=experts)

    @property
    def count(self) -> int:
        """How many experts there are."""
        return self.weight.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        _, rows, cols = self._oriented(self.weight).shape
        return self.count * rows, cols

    @property
    def master(self) -> Tensor:
        """All matrices, one below the other: ``[experts * out, in]``."""
        return self._oriented(whole(self.weight)).reshape(self.matrix_shape)

    @property
    def multiplies_rows(self) -> bool:
        """Each matrix has tokens of its own: ``ptq/experts.py``."""
        return False

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.transpose(-2, -1) if self.transposed else weight

    # -- forward -----------------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> bool:
        """Whether its forward has to round the weights."""
        return bool(self._weight_quantizer.text) and not self.gathered_rounded

    def forward(self, reached: Tensor | None = None) -> Tensor:
        self._observe(self.weight)
        if reached is not None and self.weight_spec.scales_by_row:
            return self._rounded_alone(reached)
        with _saving(self._pack_copy) if self.transposed else nullcontext():
            return self.shaped(self.quantized_weight())

    def shaped(self, matrix: Tensor) -> Tensor:
        """All matrices, one below the other, in the shape of the parameter."""
        return self._oriented(matrix.view(self._oriented(self.weight).shape))

    def _rounded_alone(self, experts: Tensor) -> Tensor:
        """The matrices of ``experts`` rounded, the others zero."""
        result = torch.zeros_like(self.weight)
        for expert in experts.tolist():
            result[expert] = self._oriented(self.rounded_rows(*self.rows_of(expert)))
        return result

    def _rows_of(self, shard: Tensor) -> Tensor:
        return self._oriented(shard).reshape(-1, self.matrix_shape[1])

    def _shard_of(self, rows: Tensor, shard: Tensor) -> Tensor:
        return self._oriented(rows.view(self._oriented(shard).shape))

    def rows_of(self, expert: int) -> tuple[int, int]:
        """The first of its rows in ``master``, and the one after the last."""
        rows = self.matrix_shape[0] // self.count
        return expert * rows, (expert + 1) * rows

    @torch.no_grad()
    def rounded_rows(self, begin: int, end: int) -> Tensor:
        """The same numbers as these rows of ``quantized_weight``, where scales are those of rows."""
        if self.frozen_codes is not None:
            return self._frozen_weight(self.weight.dtype)[begin:end]
        parameters = [None if p is None else p[begin:end] for p in self._weight_parameters()]
        return self._weight_quantizer(self.master[begin:end], *parameters, self.outer_scale())

    # -- what autograd saves -----------------------------------------------------------------------------------------

    def pack(self, saved: Tensor) -> Callable[[], Tensor]:
        """How to get ``saved``, a view of what the forward gave, again: by rounding."""
        size, stride, offset = saved.shape, saved.stride(), saved.storage_offset()
        rows, cols = self.matrix_shape
        first, end, check = 0, rows, self._unchanged()
        if self.weight_spec.scales_by_row:
            extent = 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
            first, end = offset // cols, -(-(offset + extent) // cols)

        def again() -> Tensor:
            check()
            part = self.rounded_rows(first, end) if (first, end) != (0, rows) else self.quantized_weight()
            return part.detach().as_strided(size, stride, part.storage_offset() + offset - first * cols)

        return again

    def _pack_copy(self, saved: Tensor) -> Tensor | Callable[[], Tensor]:
        """What rounding saves: the copy of the weights in the order that it needs is made again."""
        if saved.dtype != self.weight.dtype or saved.shape != self.matrix_shape:
            return saved
        check = self._unchanged()

        def again() -> Tensor:
            check()
            return self.master.detach()

        return again

    def _unchanged(self) -> Callable[[], None]:
        """Raises where the weights are no longer what they are now."""
        version = self.weight._version

        def check() -> None:
            if self.weight._version != version:
                raise RuntimeError(
                    f"The weights of experts ({self.leaf}) were changed between a forward and its backward."
                )

        return check


def quantize_experts(layers: list[QuantExperts]) -> None:
    """Let the module of these, which are all of its own, run on their rounded weights."""
    holder = layers[0].holder
    holder.add_module(STATE, nn.ModuleDict({layer.leaf: layer for layer in layers}))
    holder.__class__ = running_on_rounded(type(holder))


@cache
def running_on_rounded(kind: type[nn.Module]) -> type[nn.Module]:
    """``kind`` of module that holds experts, but for its forward, which finds their weights rounded."""

    @torch.compiler.disable
    def forward(self, *args, **kwargs):
        reached = _reached(args, self._modules[STATE]) if hasattr(kind, "_apply_gate") else None
        with _in_place_of_parameters(self, reached):
            return kind.forward(self, *args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        kind._load_from_state_dict(self, state_dict, prefix, *rest)
        for leaf, layer in self._modules[STATE].items():
            layer.weight_loaded = prefix + leaf in state_dict

    def __reduce_ex__(self, protocol):
        return reduce_made(self, running_on_rounded, kind, protocol)

    own = {"forward": forward, "_load_from_state_dict": _load_from_state_dict, "__reduce_ex__": __reduce_ex__}
    return type(f"Quant{kind.__name__}", (kind,), {**own, "__module__": kind.__module__})


def _reached(args: tuple, layers: nn.ModuleDict) -> Tensor | None:
    """The experts that tokens are sent to, where those are sure to be a few and nothing is trained.

    The second argument says so in transformers' experts interface.
    """
    sent = args[1] if len(args) > 1 and isinstance(args[1], Tensor) else None
    count = next(iter(layers.values())).count
    if torch.is_grad_enabled() or sent is None or sent.is_floating_point() or sent.numel() >= count:
        return None
    return sent.unique()


@contextmanager
def _in_place_of_parameters(holder: nn.Module, reached: Tensor | None) -> Iterator[None]:
    """Attributes of an instance come before its parameters: whoever asks for one finds the rounded one."""
    for layer in holder._modules[STATE].values():
        layer.called = True  # also one that leaves its weights as they are
    layers = {leaf: layer for leaf, layer in holder._modules[STATE].items() if layer.rounds}
    rounded = {leaf: layer(reached) for leaf, layer in layers.items()}
    places = {tensor.untyped_storage()._cdata: layers[leaf] for leaf, tensor in rounded.items()}
    vars(holder).update(rounded)
    try:
        with _saving(_rounded_again(places)):
            yield
    finally:
        for leaf in rounded:
            del vars(holder)[leaf]
        rounded.clear()
        if torch.is_grad_enabled():  # the backward needs one after the other
            release_all_but_the_largest()


def _rounded_again(places: dict[int, QuantExperts]) -> Callable[[Tensor], Tensor | Callable[[], Tensor]]:
    """What autograd would keep of the rounded weights is rounded again when it is asked for."""

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        layer = places.get(tensor.untyped_storage()._cdata)
        return tensor if layer is None else layer.pack(tensor)

    return pack


@contextmanager
def _saving(pack: Callable[[Tensor], Tensor | Callable[[], Tensor]]) -> Iterator[None]:
    """Autograd keeps what ``pack`` makes of a tensor: the tensor, or a function that gives it again.

    Inside of gradient checkpointing nothing is kept anyway, and its own hooks must see all tensors.
    """
    if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        yield
        return

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    with saved_tensors_hooks(pack, unpack):
        yield
