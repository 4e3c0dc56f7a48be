"""Weights that FSDP2 gathers rounded: each process rounds the rows that it holds, so that all together round each row once.

FSDP2 asks a tensor of a type of its own what to gather of it (``fsdp_pre_all_gather``). What comes back is the gradient of
the rounded weight, reduced to this process' rows: there it goes through the backward of the rounding, (4) to (6) of
docs/numerics.md, which is linear in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch

from torchqat.layers.sharded import is_part, local, part_like

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# What FSDP2 and modules make of a shard before it is asked.
_aten = torch.ops.aten
_STAYING = (
    _aten.detach, _aten.empty_like, _aten.new_zeros, _aten.slice, _aten.view, _aten.as_strided, _aten._to_copy,
    _aten._pin_memory,
)  # fmt: skip


class RoundedShard(Tensor):
    """A process' rows of a weight, in floating point, of which FSDP2 gathers the rounded ones; a type for each layer."""

    layer: RoundedShards

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if not all(issubclass(kind, RoundedShard) for kind in types):
            return NotImplemented
        with no_dispatch():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func.overloadpacket in _STAYING else result

    def __reduce_ex__(self, protocol):
        return self.as_subclass(Tensor).__reduce_ex__(protocol)

    def fsdp_pre_all_gather(self, mesh: DeviceMesh, outer_size, outer_stride, module, mp_policy):
        shard = self.as_subclass(Tensor)
        rounded = self.layer.rounded_shard(shard, mesh).to(mp_policy.param_dtype or self.dtype).contiguous()
        missing = -(-outer_size[0] // mesh.size()) - len(shard)
        if missing:
            rounded = torch.cat([rounded, rounded.new_zeros(missing, *shard.shape[1:])])
        return (rounded,), None

    def fsdp_post_all_gather(self, gathered: tuple[Tensor, ...], metadata, dtype, *, out=None):
        return (gathered[0], ()) if out is None else None  # the same memory, filled anew


class _Watched:
    """The sharded parameters whose gradients go through the rounding.

    Attributes:
        weight: That of the layer.
        learned: Its scale and its zero point where they are learned, ``None`` for one that it has not.
        earlier: Their gradients of earlier backwards while one comes in.
    """

    def __init__(self, weight: Tensor, learned: tuple[Tensor | None, ...]):
        self.weight, self.learned = weight, learned
        self.earlier: list[Tensor | None] = []

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        return self.weight, *self.learned


class RoundedShards(nn.Module):
    """What a layer needs so that its weight is gathered rounded; to be mixed into it.

    Scales have to be those of rows or of groups in rows, and rows to lie along the weight's first dimension, which is what
    FSDP2 cuts. Whether it has an adapter that is added first, say, is asked at each gathering: where that does not allow it,
    the weight is gathered as it is and rounded whole.
    """

    rounds_shards = True  # of a class: its rows lie so, and it rounds all of them in a forward

    def _init_shards(self) -> None:
        self._gathered = ""  # the text by which the weight that was gathered last is rounded
        self._first_row = 0  # of those that this process holds
        self._watched: _Watched | None = None

    def gather_rounded(self, module: nn.Module, name: str) -> None:
        """From now on, if this is called before ``fully_shard``. ``module`` has the weight as its parameter ``name``."""
        weight = module._parameters[name]
        kind = type("RoundedShard", (RoundedShard,), {"layer": self, "__module__": __name__})
        shard = weight.detach().as_subclass(kind)
        module._parameters[name] = nn.Parameter(shard, requires_grad=weight.requires_grad)

    @property
    def gathered_rounded(self) -> bool:
        """Whether the weight that is here now was gathered and is rounded already."""
        return self._gathered != "" and not is_part(self.weight)

    def forget_gathered(self) -> None:
        """What is gathered next says anew what it is."""
        self._gathered = ""

    # -- forward -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rounded_shard(self, shard: Tensor, mesh: DeviceMesh) -> Tensor:
        """What to gather of ``shard``: its rows rounded, or as they are."""
        self._gathered = self._weight_quantizer.text if self._rounds_shards(mesh) else ""
        if not self._gathered:
            return shard
        self._watch()
        if torch._C._current_graph_task_id() != -1:  # for a backward
            self._set_aside()
        if not len(shard):
            return shard
        self._first_row = mesh.get_local_rank() * -(-self.weight.shape[0] // mesh.size()) * self._height
        rows = self._rows_of(shard)
        return self._shard_of(self._weight_quantizer(rows, *self._parameters_of(rows)), shard)

    def _rounds_shards(self, mesh: DeviceMesh) -> bool:
        """The same on all processes."""
        spec = self.weight_spec
        if not self._weight_quantizer.text or not spec.scales_by_row or self.shared_outer_scale is not None:
            return False
        if self.adapter is not None or self.frozen_codes is not None:
            return False
        if spec.scale != "learned":
            return True
        # Their gradient comes from that of the weight, on the process that has both.
        cut_alike = self._height == 1 or self.weight.shape[0] % mesh.size() == 0
        return cut_alike and self.weight.requires_grad

    @property
    def _height(self) -> int:
        """Rows of the matrix in one entry of the weight's first dimension."""
        return self.matrix_shape[0] // self.weight.shape[0]

    def _rows_of(self, shard: Tensor) -> Tensor:
        """A part of the weight as rows of the matrix."""
        return shard.reshape(-1, self.matrix_shape[1])

    def _shard_of(self, rows: Tensor, shard: Tensor) -> Tensor:
        """The inverse, shaped like ``shard``."""
        return rows.view(shard.shape)

    def _parameters_of(self, rows: Tensor) -> list[Tensor | None]:
        """Scales and zero points of the rows that this process holds: learned ones are cut as the weight is."""
        if self.weight_spec.scale == "learned":
            found = [None if p is None else local(p.detach()) for p in self._watched.learned]
        else:
            first, end = self._first_row, self._first_row + len(rows)
            found = [None if p is None else p[first:end] for p in self._weight_parameters()]
        return [None if p is None else p.to(rows.device) for p in found]

    # -- backward ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Called while the parameters that this layer has are the sharded ones; in a forward they are whole."""
        if self._watched is not None and self._watched.weight is self.weight:
            return
        learned = self._weight_parameters() if self.weight_spec.scale == "learned" else ()
        self._watched = _Watched(self.weight, learned)
        if self.weight.requires_grad:
            self.weight.register_post_accumulate_grad_hook(lambda _: self._through_rounding())

    def _set_aside(self) -> None:
        """Let gradients of earlier backwards wait while one comes in.

        FSDP2 adds to them, but those of learned scales are found from what came in alone.
        """
        watched = self._watched
        if watched.learned and not watched.earlier and watched.weight.grad is not None:
            watched.earlier = [None if p is None else p.grad for p in watched.parameters]
            for parameter in watched.parameters:
                if parameter is not None:
                    parameter.grad = None
            # After FSDP2's own callback, which comes before: where nothing came in after all.
            torch.autograd.Variable._execution_engine.queue_callback(self._bring_back)

    def _bring_back(self) -> None:
        watched = self._watched
        earlier, watched.earlier = watched.earlier, []
        for parameter, before in zip(watched.parameters, earlier, strict=False):
            if before is not None:
                if parameter.grad is not None:
                    local(before).add_(local(parameter.grad))
                parameter.grad = before

    @torch.no_grad()
    def _through_rounding(self) -> None:
        """The gradient of rounded rows, which just came in, becomes that of the rows and of their scales."""
        if not self._gathered:
            return
        watched = self._watched
        shard, grad = local(watched.weight.detach()), local(watched.weight.grad)
        found: list[Tensor | None] = [None if p is None else local(p.detach()) for p in watched.learned]
        if len(shard):  # else there are none of the scales either
            rows, incoming = self._rows_of(shard).contiguous(), self._rows_of(grad).contiguous()
            found = torch.ops.qat._fake_quantize_backward_(
                incoming, rows, self._gathered, *self._parameters_of(rows), None
            )
            grad.copy_(self._shard_of(incoming, grad))
        for parameter, gradient in zip(watched.learned, found, strict=False):
            if parameter is not None and parameter.requires_grad:
                parameter.grad = part_like(parameter, gradient)
        self._bring_back()
