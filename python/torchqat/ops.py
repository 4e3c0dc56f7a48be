"""The operators, documented and typed. Each is one call to ``torch.ops.qat``; the arithmetic is in C++.

A tensor is seen as a matrix ``[rows, cols]`` whose columns are its last dimension, and ``block = (rows, cols)`` cuts it
into blocks that share a scale; -1 takes a whole axis: per tensor ``(-1, -1)``, per channel or token ``(1, -1)``, per
group ``(1, g)``, 2-D ``(128, 128)``. Scales are float32 ``[grid_rows, grid_cols]``. Equations: ``docs/numerics.md``.

Shared errors: ``TypeError`` for a dtype that is not float32, float16 or bfloat16, ``ValueError`` for a scale or zero
point that does not have one entry per block and for a range outside [-128, 127].
"""

import torch
from torch import Tensor

from torchqat import _library  # noqa: F401  registers torch.ops.qat

Block = tuple[int, int]


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, block: Block, quant_min: int, quant_max: int
) -> Tensor:
    """Round ``x`` to the levels that given parameters describe; gradients pass straight through. Equations (1) to (4).

    Args:
        x: float32, float16 or bfloat16, any shape.
        scale: float32 ``[grid_rows, grid_cols]``.
        zero_point: int8, shaped like ``scale``; ``None`` means 0.
        block: Block shape.
        quant_min: Lowest level, inclusive.
        quant_max: Highest level, inclusive.

    Returns:
        ``(q - zero_point) * scale`` in the shape and dtype of ``x``; elements that are not finite become NaN.

    Example:
        >>> fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor([[0.5]]), None, (-1, -1), -8, 7)
        tensor([0.5000, 3.5000])
    """
    return torch.ops.qat.fake_quantize(x, scale, zero_point, block, quant_min, quant_max)


def fake_quantize_dynamic(
    x: Tensor, block: Block, bits: int, grid: str = "narrow", scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each block's scale from its range and round to it, in one pass. Equations (1) to (4), (7), (9).

    Args:
        x: float32, float16 or bfloat16, any shape.
        block: Block shape.
        bits: 2 to 8.
        grid: ``narrow``, ``full``, ``signed`` or ``asymmetric``.
        scale_dtype: dtype that a checkpoint will store; the scale is rounded to it before it is used.

    Returns:
        The rounded tensor, scale (float32) and zero point (int8, zero on symmetric grids), one per block.

    Raises:
        ValueError: ``bits`` or ``grid`` is out of range.
    """
    return torch.ops.qat.fake_quantize_dynamic(x, block, bits, grid, scale_dtype)


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    block: Block,
    quant_min: int,
    quant_max: int,
    scale_dtype: torch.dtype = torch.float32,
    gradient_scale: float = 1.0,
) -> Tensor:
    """Fake quantization with trained parameters: LSQ (arXiv 1902.08153), LSQ+ (arXiv 2004.09576). Equations (1) to (8).

    Args:
        x: float32, float16 or bfloat16, any shape.
        scale: float32 ``[grid_rows, grid_cols]``; receives gradient (5).
        zero_point: float32, shaped like ``scale``, or ``None``; rounded to a level, receives gradient (6).
        block: Block shape.
        quant_min: Lowest level, inclusive.
        quant_max: Highest level, inclusive.
        scale_dtype: dtype that a checkpoint will store.
        gradient_scale: Factor on the gradients of scale and zero point.
    """
    return torch.ops.qat.fake_quantize_learned(
        x, scale, zero_point, block, quant_min, quant_max, scale_dtype, gradient_scale
    )


def choose_qparams(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str = "narrow",
    method: str = "minmax",
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int8) of each block, by range or by least squared error. Equations (7) to (10)."""
    return torch.ops.qat.choose_qparams(x, block, bits, grid, method, scale_dtype)


def round_qparams(
    scale: Tensor, zero_point: Tensor | None, quant_min: int, quant_max: int, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Learned parameters as they will be stored. Equations (7) and (8)."""
    return torch.ops.qat.round_qparams(scale, zero_point, quant_min, quant_max, scale_dtype)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, block: Block, quant_min: int, quant_max: int
) -> Tensor:
    """The int8 codes that ``fake_quantize`` uses. Equations (1) and (2); NaN becomes ``quant_min``."""
    return torch.ops.qat.quantize(x, scale, zero_point, block, quant_min, quant_max)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: Block, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(codes - zero_point) * scale`` in float32, rounded once to ``dtype``. Equation (3)."""
    return torch.ops.qat.dequantize(codes, scale, zero_point, block, dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of 2, 4 or 8 bits, offset to unsigned, in int32 words along the last dimension, element 0 lowest."""
    return torch.ops.qat.pack(codes, bits)


def unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The inverse of ``pack``: int8 ``[..., cols]``."""
    return torch.ops.qat.unpack(packed, bits, cols)
