"""The scales of a quantized layer's weight: found in every forward, searched, or learned; alone or under outer ones."""

import math

import torch
from torch import Tensor, nn

from torchqat import ops
from torchqat._library import FLOAT
from torchqat.layers.sharded import assign, whole

# Between two levels, in units of its scale, at a quarter of the largest, where most weights of a group lie.
_LEVEL_DISTANCES = {
    "iq4_nl": 12.0,
    "fp4_e2m1": 0.5,
    "fp6_e2m3": 0.125,
    "fp6_e3m2": 1.0,
    "fp8_e4m3": 8.0,
    "fp8_e5m2": 2048.0,
}


class WeightScales(nn.Module):
    """What a layer needs to quantize its weight; to be mixed into it.

    Attributes:
        keeps_scales: Scales are chosen before training together with codes, and a schedule returns to them.
        shared_outer_scale: That of the layers which engines fuse with this one; ``None`` where it has its own, or none.
    """

    _settled_outer_scales: tuple[Tensor | None, Tensor | None] | None = None

    def _register_weight_parameters(self) -> None:
        spec = self.weight_spec
        if spec is None or spec.finds_scale:
            return
        rows, cols = _grid(spec.block, *self.matrix_shape)
        scale = torch.ones(rows, cols, dtype=torch.float32, device=self.weight.device)
        zero_point = torch.zeros(rows, cols, dtype=torch.float32, device=self.weight.device)
        self._register_outer_scales()
        if self.keeps_scales:
            self.register_buffer("lattice_scale", torch.zeros_like(scale))
            dtype = torch.float32 if spec.has_offset else torch.int8
            self.register_buffer("lattice_zero_point", torch.zeros_like(zero_point, dtype=dtype))
            self._register_lattice_outer_scales()
        if spec.scale == "mse":
            self.register_buffer("weight_scale", scale)
            self.register_buffer("weight_zero_point", zero_point if spec.has_offset else zero_point.to(torch.int8))
            return
        self.weight_scale = nn.Parameter(scale)
        self.weight_zero_point = None if spec.symmetric else nn.Parameter(zero_point)

    def _register_outer_scales(self) -> None:
        """Those of scales that stay as they are; others follow the weight, or the learned scales."""
        spec = self.weight_spec
        if spec.scale != "mse" or not spec.has_outer_scale:
            return
        grid = _grid(spec.outer_block, *self.matrix_shape)
        outer = torch.ones(*grid, dtype=torch.float32, device=self.weight.device)
        self.register_buffer("weight_outer_scale", outer)
        self.register_buffer("weight_outer_offset", outer.clone() if spec.has_offset else None)

    def _register_lattice_outer_scales(self) -> None:
        if hasattr(self, "weight_outer_scale"):
            for part, outer in zip(("scale", "offset"), self._kept_outer_scales(), strict=True):
                self.register_buffer(f"lattice_outer_{part}", None if outer is None else outer.clone())

    @torch.no_grad()
    def derive_weight_scale(self, method: str = "mse") -> None:
        """Choose scale and zero point anew from the master weight at the width in force (numerics.md 9, 10)."""
        if self.has_lattice and self.weight_bits == self.weight_spec.bits:
            self._assign_scale(self.lattice_scale, self.lattice_zero_point)
            if hasattr(self, "weight_outer_scale"):
                self._keep_outer_scales(self.lattice_outer_scale, self.lattice_outer_offset)
        else:
            self._assign_scale(*self._chosen_scale(method))

    def forget_lattice(self) -> None:
        """Scales that were chosen before training together with codes are no longer those to return to."""
        if self.keeps_scales:
            self.lattice_scale.zero_()

    @torch.no_grad()
    def choose_weight_scale(self, method: str, importance: Tensor | None = None) -> None:
        """The same, in place of scales that a schedule would return to; ``importance`` as of ``ops.choose_qparams``."""
        text = self.weight_spec.quantizer(self.weight_bits, "minmax")
        outer = self.settle_outer_scales()
        self.set_qparams(*ops.choose_qparams(self.master, text, _search(method), importance, *outer))

    def _chosen_scale(self, method: str) -> tuple[Tensor, Tensor]:
        text, outer = self.weight_spec.quantizer(self.weight_bits, "minmax"), (None, None)
        if self.weight_spec.has_outer_scale:
            outer = self._needed_outer_scales(
                self.shared_outer_scale and self.shared_outer_scale.needed(self.weight_bits)
            )
            self._keep_outer_scales(*outer)
        return ops.choose_qparams(self.master, text, _search(method), None, *outer)

    @torch.no_grad()
    def settle_outer_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """The outer scales of what is chosen together with codes, and those of offsets; ``None`` where there are none.

        By the ranges of the weight, and of all that share one, as they were when this was first called since
        ``unsettle_outer_scales``: rounding moves weights, and their parts, one after the other.
        """
        if not self.weight_spec.has_outer_scale:
            return None, None
        if self._settled_outer_scales is None:
            shared = self.shared_outer_scale and self.shared_outer_scale.settled(self.weight_bits)
            self._settled_outer_scales = self._needed_outer_scales(shared)
            self._keep_outer_scales(*self._settled_outer_scales)
        return self._settled_outer_scales

    def unsettle_outer_scales(self) -> None:
        """Find them anew where they are asked for next: before weights are rounded again."""
        self._settled_outer_scales = None
        if self.shared_outer_scale is not None:
            self.shared_outer_scale.unsettle()

    def _needed_outer_scales(self, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if shared is not None and not self.weight_spec.has_offset:
            return shared, None
        outer, offset = ops.choose_outer_scales(self.master, self.weight_spec.quantizer(self.weight_bits, "minmax"))
        return outer if shared is None else shared, offset

    def _kept_outer_scales(self) -> tuple[Tensor, Tensor | None]:
        return self.weight_outer_scale, self.weight_outer_offset

    def _keep_outer_scales(self, outer: Tensor, offset: Tensor | None) -> None:
        """Where scales stay as they are; others have outer ones by what they are now."""
        if hasattr(self, "weight_outer_scale"):
            assign(self.weight_outer_scale, outer)
            if offset is not None:
                assign(self.weight_outer_offset, offset)

    def _assign_scale(self, scale: Tensor, zero_point: Tensor) -> None:
        assign(self.weight_scale, scale)
        if self.weight_zero_point is not None:
            assign(self.weight_zero_point, zero_point)

    @torch.no_grad()
    def level_distance(self) -> float:
        """The mean distance between two levels of the weight as it is rounded now, in the weight's own units.

        1 of a weight without numbers, on the device ``meta``.
        """
        if self.weight.is_meta:
            return 1.0
        scale = self.stored_qparams()[0].abs().mean().item()
        return max(scale * _LEVEL_DISTANCES.get(self.weight_spec.dtype, 1.0), 1e-8)

    @torch.no_grad()
    def needed_outer_scale(self, bits: int) -> Tensor:
        """The outer scale that the weight itself needs at ``bits``, by its range, float32."""
        return ops.choose_outer_scales(self.master, self.weight_spec.quantizer(bits, "minmax"))[0]

    @torch.no_grad()
    def outer_scale_in_force(self) -> Tensor:
        """The outer scale that the weight, or its learned scales, need now; that of fixed scales is kept."""
        if self.weight_spec.scale == "mse":
            return self.weight_outer_scale
        if self.weight_spec.scale == "learned":
            return ops.outer_scales(whole(self.weight_scale), self._weight_quantizer.text)
        return ops.choose_outer_scales(self.master, self._weight_quantizer.text)[0]

    def outer_scale(self) -> Tensor | None:
        """What the operators are told; ``None`` lets them find the weight's own."""
        shared = self.shared_outer_scale
        if shared is None or self.weight_bits == FLOAT or self.weight_spec.scale == "mse":
            return None
        return shared.in_force()

    @property
    def has_lattice(self) -> bool:
        return self.keeps_scales and not self.lattice_scale.is_meta and bool(self.lattice_scale.any())

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Scales and zero points that were chosen together with the weight, for the width in force.

        At the exported width they are also kept as the layer's lattice, to which a schedule that passes through other
        widths returns.

        Args:
            scale: float32, one per block, as it is stored, under the outer scales of ``settle_outer_scales``.
            zero_point: int8, shaped like ``scale``; an offset float32.
        """
        self._assign_scale(scale, zero_point)
        if self.keeps_scales and self.weight_bits == self.weight_spec.bits:
            self.lattice_scale.copy_(scale)
            self.lattice_zero_point.copy_(zero_point)
            self.keep_lattice_outer_scales()
        self.forget_weight()

    def keep_lattice_outer_scales(self) -> None:
        """Those in force become the lattice's."""
        if hasattr(self, "lattice_outer_scale"):
            self.lattice_outer_scale.copy_(self.weight_outer_scale)
            if self.lattice_outer_offset is not None:
                self.lattice_outer_offset.copy_(self.weight_outer_offset)

    def _weight_parameters(self) -> tuple[Tensor | None, Tensor | None]:
        return getattr(self, "weight_scale", None), getattr(self, "weight_zero_point", None)

    @torch.no_grad()
    def stored_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale (float32, as it is stored) and zero point (int8; an offset float32) of the weight in force."""
        spec, outer = self.weight_spec, self.outer_scale()
        if spec.finds_scale:
            text = spec.quantizer(self.weight_bits, "minmax")
            return ops.choose_qparams(self.master, text, spec.finder(self.weight_bits), outer_scale=outer)
        if spec.scale == "mse":
            return self.weight_scale, self.weight_zero_point
        zero_point = None if self.weight_zero_point is None else whole(self.weight_zero_point)
        text = spec.quantizer(self.weight_bits, "learned")
        return ops.round_qparams(whole(self.weight_scale), text, zero_point, outer)

    @torch.no_grad()
    def stored_outer_scales(self) -> tuple[Tensor | None, Tensor | None]:
        """What ``stored_qparams`` are multiples of: outer scales of scales and of offsets, float32."""
        spec = self.weight_spec
        if not spec.has_outer_scale:
            return None, None
        if spec.scale == "mse":
            return self._kept_outer_scales()
        if spec.scale == "learned":
            scale, offset = self.outer_scale_in_force(), None
            if spec.has_offset:
                text = spec.quantizer(self.weight_bits, "learned")
                offset = ops.outer_scales(whole(self.weight_zero_point), text)
        else:
            scale, offset = ops.choose_outer_scales(self.master, spec.quantizer(self.weight_bits, "minmax"))
        shared = self.outer_scale()
        return scale if shared is None else shared, offset


def _grid(block: tuple[int, int], rows: int, cols: int) -> tuple[int, int]:
    height, width = (size if side == -1 else side for side, size in zip(block, (rows, cols), strict=True))
    return math.ceil(rows / height), math.ceil(cols / width)


def _search(method: str) -> str:
    return "minmax" if method == "rtn" else method
