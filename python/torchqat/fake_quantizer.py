"""One tensor's fake quantization at one width: plain values, so that ``torch.compile`` sees constants."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchqat import ops
from torchqat._library import DTYPES, QuantSpec


@dataclass(frozen=True)
class FakeQuantizer:
    """The choice between scales that are found in the call, given, or learned; made once per width.

    Attributes:
        mode: ``dynamic``, ``given`` or ``learned``.
        bits: Width in force.
        grid: Name of the grid.
        block: Block shape.
        quant_min: Lowest level.
        quant_max: Highest level.
        scale_dtype: dtype that the scale is rounded to.
        whole_tensor: One scale for everything: LSQ's factor then counts a token's features, not the batch.
    """

    mode: str
    bits: int
    grid: str
    block: tuple[int, int]
    quant_min: int
    quant_max: int
    scale_dtype: torch.dtype
    whole_tensor: bool

    @classmethod
    def of(cls, spec: QuantSpec, bits: int, dynamic: bool) -> "FakeQuantizer":
        mode = "dynamic" if dynamic else "learned" if spec.scale == "learned" else "given"
        quant_min, quant_max = spec.quant_range(bits)
        whole = spec.granularity == "tensor"
        return cls(mode, bits, spec.grid, tuple(spec.block), quant_min, quant_max, DTYPES[spec.scale_dtype], whole)

    def __call__(self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
        if self.mode == "dynamic":
            return ops.fake_quantize_dynamic(x, self.block, self.bits, self.grid, self.scale_dtype)[0]
        ends = (self.block, self.quant_min, self.quant_max)
        if self.mode == "given":
            return ops.fake_quantize(x, scale, zero_point, *ends)
        # LSQ's factor, numerics.md (11).
        elements = x.shape[-1] if self.whole_tensor and x.dim() > 2 else x.numel() / scale.numel()
        factor = 1.0 / math.sqrt(elements * self.quant_max)
        return ops.fake_quantize_learned(x, scale, zero_point, *ends, self.scale_dtype, factor)
