"""Scales and codes: found, stored, packed, brought back."""

import torch
from torch import Tensor

from torchqat.ops.block import Block


def choose_qparams(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str = "narrow",
    method: str = "minmax",
    scale_dtype: torch.dtype = torch.float32,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int8) of each block, by range or by least squared error. Equations (7) to (10).

    ``importance``, float32 ``[cols]``, weights the columns in that error.
    """
    return torch.ops.qat.choose_qparams(x, block, bits, grid, method, scale_dtype, importance)


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
    """``(codes - zero_point) * scale`` in float32, rounded once to ``dtype``. Equation (3); in ``scale``, (29)."""
    return torch.ops.qat.dequantize(codes, scale, zero_point, block, dtype)


def quantize_with_feedback(
    weight: Tensor,
    offset: Tensor,
    transfer: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round columns left to right, each making good the errors of those before it: the inner loop of GPTQ, (16).

    Args:
        weight: float32 ``[rows, cols]``, at most 1024 columns.
        offset: float32 ``[rows, cols]``, what earlier columns ask for.
        transfer: float32 ``[cols, cols]``; entry ``(i, j)``, ``i < j``, is what ``j`` gets of the error of ``i``.
        scale: float32 ``[rows, 1]`` or ``[rows, cols]``.
        zero_point: int8, shaped like ``scale``.
        quant_min: Lowest level.
        quant_max: Highest level.

    Returns:
        Codes int8; error, float32, ``weight`` less what it was rounded to; residual, what was rounded less the same.
    """
    return torch.ops.qat.quantize_with_feedback(weight, offset, transfer, scale, zero_point, quant_min, quant_max)


def encode(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: Block,
    bits: int,
    grid: str = "narrow",
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of ``x``, two to a byte up to 4 bits, with scale and zero point; without ``scale``, found from the range.

    A block with elements that are not finite gets the scale NaN, since no code stands for them.
    """
    return torch.ops.qat.encode(x, scale, zero_point, block, bits, grid, scale_dtype)


def decode(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    block: Block,
    bits: int,
    grid: str,
    cols: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The inverse of ``encode``: ``[rows, cols]``, bit for bit what ``fake_quantize`` gives."""
    return torch.ops.qat.decode(codes, scale, zero_point, block, bits, grid, cols, dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of 2, 3, 4 or 8 bits, offset to unsigned, in int32 words along the last dimension, element 0 lowest."""
    return torch.ops.qat.pack(codes, bits)


def unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The inverse of ``pack``: int8 ``[..., cols]``."""
    return torch.ops.qat.unpack(packed, bits, cols)
