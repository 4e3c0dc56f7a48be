"""One tensor's fake quantization at one width: plain values, so that ``torch.compile`` sees constants."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqat import ops
from torchqat._library import DTYPES, FLOAT, QuantSpec


@dataclass(frozen=True)
class FakeQuantizer:
    """The choice between scales that are found in the call, fixed, or learned; made once per width.

    Attributes:
        text: All of it in one line, as ``ops.quant_linear`` takes it; empty when the tensor is left as it is.
        mode: ``minmax``, ``fixed``, ``learned`` or ``none``.
        bits: Width in force.
        grid: Name of the grid.
        block: Block shape.
        quant_min: Lowest level.
        quant_max: Highest level.
        scale_dtype: dtype that the scale is rounded to.
        gradient_scale: Factor on the gradients of learned parameters, numerics.md (11).
    """

    text: str = ""
    mode: str = "none"
    bits: int = FLOAT
    grid: str = "narrow"
    block: tuple[int, int] = (-1, -1)
    quant_min: int = 0
    quant_max: int = 0
    scale_dtype: torch.dtype = torch.float32
    gradient_scale: float = 1.0

    @classmethod
    def of_weight(cls, spec: QuantSpec | None, bits: int, rows: int, cols: int) -> "FakeQuantizer":
        return cls() if spec is None else cls._of(spec, bits, spec.weight_quantizer(bits, rows, cols))

    @classmethod
    def of_input(cls, spec: QuantSpec | None, bits: int, features: int) -> "FakeQuantizer":
        return cls() if spec is None else cls._of(spec, bits, spec.input_quantizer(bits, features))

    @classmethod
    def _of(cls, spec: QuantSpec, bits: int, text: str) -> "FakeQuantizer":
        if not text:
            return cls()
        mode, factor = text.split()[0], text.split()[5:]
        dtype = DTYPES[spec.scale_dtype]
        block, ends = tuple(spec.block), spec.quant_range(bits)
        return cls(text, mode, bits, spec.grid, block, *ends, dtype, float(factor[0]) if factor else 1.0)

    def __call__(self, x: Tensor, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
        if self.mode == "none":
            return x
        if self.mode == "minmax":
            return ops.fake_quantize_dynamic(x, self.block, self.bits, self.grid, self.scale_dtype)[0]
        ends = (self.block, self.quant_min, self.quant_max)
        if self.mode == "fixed":
            return ops.fake_quantize(x, scale, zero_point, *ends)
        return ops.fake_quantize_learned(x, scale, zero_point, *ends, self.scale_dtype, self.gradient_scale)
