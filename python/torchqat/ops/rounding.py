"""Rounding in training: to levels that are given, found or learned."""

import torch
from torch import Tensor

from torchqat.ops.block import Block


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    block: Block,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Round ``x`` to the levels that given parameters describe; gradients pass straight through. Equations (1) to (4).

    Args:
        x: float32, float16 or bfloat16, any shape.
        scale: float32 ``[grid_rows, grid_cols]``.
        zero_point: int8, shaped like ``scale``; ``None`` means 0.
        block: Block shape.
        quant_min: Lowest level, inclusive.
        quant_max: Highest level, inclusive.
        dtype: Of the result: that of ``x``, the default, or for float32 ``x`` float16 or bfloat16.

    Returns:
        ``(q - zero_point) * scale`` in the shape of ``x``; elements that are not finite become NaN.

    Example:
        >>> fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor([[0.5]]), None, (-1, -1), -8, 7)
        tensor([0.5000, 3.5000])
    """
    return torch.ops.qat.fake_quantize(x, scale, zero_point, block, quant_min, quant_max, dtype=dtype)


def fake_quantize_dynamic(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str = "narrow",
    scale_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each block's scale from its range and round to it, in one pass. Equations (1) to (4), (7), (9).

    Args:
        x: float32, float16 or bfloat16, any shape.
        block: Block shape.
        bits: 2 to 8.
        grid: ``narrow``, ``full``, ``signed`` or ``asymmetric``.
        scale_dtype: dtype that a checkpoint will store; the scale is rounded to it before it is used.
        dtype: Of the rounded tensor, as for ``fake_quantize``.

    Returns:
        The rounded tensor, scale (float32) and zero point (int8, zero on symmetric grids), one per block.

    Raises:
        ValueError: ``bits`` or ``grid`` is out of range.
    """
    return torch.ops.qat.fake_quantize_dynamic(x, block, bits, grid, scale_dtype, dtype=dtype)


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    block: Block,
    quant_min: int,
    quant_max: int,
    scale_dtype: torch.dtype = torch.float32,
    gradient_scale: float = 1.0,
    dtype: torch.dtype | None = None,
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
        dtype: Of the result, as for ``fake_quantize``.
    """
    return torch.ops.qat.fake_quantize_learned(
        x, scale, zero_point, block, quant_min, quant_max, scale_dtype, gradient_scale, dtype=dtype
    )
