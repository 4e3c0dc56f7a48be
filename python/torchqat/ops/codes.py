"""Scales and codes: found, stored, packed, brought back."""

import torch
from torch import Tensor

from torchqat.ops import deprecated
from torchqat.ops.block import Block
from torchqat.ops.deprecated import accepts_old_arguments


@accepts_old_arguments(deprecated.old_choose_qparams)
def choose_qparams(
    x: Tensor,
    quantizer: str,
    method: str = "minmax",
    importance: Tensor | None = None,
    outer_scale: Tensor | None = None,
    outer_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int8; offsets float32) of each block, as stored. Equations (7) to (10).

    Args:
        x: float32, float16 or bfloat16, any shape.
        quantizer: A quantizer's text (``quantizer_text``); its mode does not matter.
        method: ``minmax``, by range; ``mse``, by the least squared error of what is stored; ``absmean``, the mean magnitude,
            for ``int2 narrow`` alone (9b).
        importance: float32 ``[cols]``, weights of the columns in that error.
        outer_scale: float32, one per outer block, of quantizers that have them; ``None``: found by range.
        outer_offset: The same for offsets.

    Returns:
        Both ``[grid_rows, grid_cols]``; zero points of grids without them are 0.
    """
    return torch.ops.qat.choose_qparams(x, quantizer, method, importance, outer_scale, outer_offset)


def choose_outer_scales(
    x: Tensor, quantizer: str, method: str = "minmax", importance: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The outer scales that ``choose_qparams`` finds for the scales of ``x``, and for its offsets. Equation (7d).

    Those of the ranges by either method: a search is for scales under known outer ones.

    Args:
        x: float32, float16 or bfloat16, any shape.
        quantizer: The text of a quantizer that has outer scales, such as ``minmax fp4_e2m1 1x16 e4m3*float32@-1x-1``.
        method: As of ``choose_qparams``.
        importance: As of ``choose_qparams``.

    Returns:
        float32 ``[outer_rows, outer_cols]`` each; ``None`` in place of the second on grids without offsets. Tensors that
        share an outer scale take the largest of theirs.
    """
    outer, offset = torch.ops.qat.choose_outer_scales(x, quantizer, method, importance)
    return outer, offset if offset.numel() else None


def outer_scales(scale: Tensor, quantizer: str) -> Tensor:
    """The outer scales that ``round_qparams`` finds for scales, or offsets, that are real numbers. Equation (7d).

    Args:
        scale: float32 ``[grid_rows, grid_cols]``.
        quantizer: The text of a quantizer that has outer scales.

    Returns:
        float32 ``[outer_rows, outer_cols]``.
    """
    return torch.ops.qat.outer_scales(scale, quantizer)


@accepts_old_arguments(deprecated.old_round_qparams)
def round_qparams(
    scale: Tensor, quantizer: str, zero_point: Tensor | None = None, outer_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Learned parameters as they will be stored. Equations (7) and (8).

    Args:
        scale: float32, any shape; ``[grid_rows, grid_cols]`` for quantizers with outer scales.
        quantizer: A quantizer's text; its mode does not matter.
        zero_point: float32, shaped like ``scale``: zero points or, on the grid ``offset``, offsets; ``None`` means 0.
        outer_scale: float32, one per outer block, of quantizers that have them; ``None``: found.

    Returns:
        Scale, float32, and zero point, int8 (offsets float32), shaped like ``scale``.
    """
    return torch.ops.qat.round_qparams(scale, quantizer, zero_point, outer_scale)


@accepts_old_arguments(deprecated.old_quantize)
def quantize(x: Tensor, quantizer: str, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """The codes that ``fake_quantize`` uses: levels, int8, or of floats in ``torch.float8_e4m3fn`` (E5M2 in its own).

    Equations (1) and (2); NaN becomes the lowest level.

    Args:
        x: float32, float16 or bfloat16, any shape.
        quantizer: A quantizer's text; its mode does not matter.
        scale: float32 ``[grid_rows, grid_cols]``, as stored.
        zero_point: Shaped like ``scale``, int8, or float32 offsets; ``None`` means 0.

    Returns:
        Codes in the shape of ``x``.
    """
    return torch.ops.qat.quantize(x, quantizer, scale, zero_point)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: Block, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``(codes - zero_point) * scale`` in float32, rounded once to ``dtype``. Equation (3); in ``scale``, (29).

    Args:
        codes: As ``quantize`` returns them, any shape.
        scale: float32 ``[grid_rows, grid_cols]``; receives the gradient (29).
        zero_point: Shaped like ``scale``, int8, or float32: an offset, which is added; ``None`` means 0.
        block: Rows and columns that share a scale; -1 takes a whole axis.
        dtype: float32, float16 or bfloat16.

    Returns:
        A tensor of ``dtype`` in the shape of ``codes``.
    """
    return torch.ops.qat.dequantize(codes, scale, zero_point, block, dtype)


@accepts_old_arguments(deprecated.old_quantize_with_feedback)
def quantize_with_feedback(
    weight: Tensor,
    quantizer: str,
    offset: Tensor,
    transfer: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round columns left to right, each making good the errors of those before it: the inner loop of GPTQ, (16).

    Args:
        weight: float32 ``[rows, cols]``, at most 1024 columns.
        quantizer: A quantizer's text, of which the levels count.
        offset: float32 ``[rows, cols]``, what earlier columns ask for.
        transfer: float32 ``[cols, cols]``; entry ``(i, j)``, ``i < j``, is what ``j`` gets of the error of ``i``.
        scale: float32 ``[rows, 1]`` or ``[rows, cols]``.
        zero_point: int8, shaped like ``scale``; ``None`` means 0.

    Returns:
        Codes as of ``quantize``; error, float32, ``weight`` less what it was rounded to; residual, what was rounded
        less the same.
    """
    return torch.ops.qat.quantize_with_feedback(weight, quantizer, offset, transfer, scale, zero_point)


@accepts_old_arguments(deprecated.old_encode)
def encode(
    x: Tensor,
    quantizer: str,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    outer_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of ``x``, two to a byte up to 4 bits, with scale and zero point; without ``scale``, found from the range.

    A block with elements that are not finite gets the scale NaN, since no code stands for them.

    Args:
        x: float32, float16 or bfloat16, any shape; a matrix ``[rows, cols]``.
        quantizer: The text of a quantizer of whole levels without offsets.
        scale: As of ``fake_quantize``, for fixed and learned quantizers.
        zero_point: The same.
        outer_scale: float32, one per outer block, of quantizers that have them; ``None``: found.

    Returns:
        Codes, uint8 ``[rows, bytes]``, each block's segment of a row beginning a byte; scale, float32, and zero point,
        int8, both ``[grid_rows, grid_cols]``.
    """
    return torch.ops.qat.encode(x, quantizer, scale, zero_point, outer_scale)


@accepts_old_arguments(deprecated.old_decode)
def decode(
    codes: Tensor,
    quantizer: str,
    scale: Tensor,
    zero_point: Tensor,
    cols: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The inverse of ``encode``, bit for bit what ``fake_quantize`` gives.

    Args:
        codes: As ``encode`` returns them, and so are ``scale`` and ``zero_point``.
        quantizer: The text that they were encoded by.
        scale: float32 ``[grid_rows, grid_cols]``.
        zero_point: int8, shaped like ``scale``.
        cols: Columns of the matrix.
        dtype: float32, float16 or bfloat16.

    Returns:
        A tensor of ``dtype``, ``[rows, cols]``.
    """
    return torch.ops.qat.decode(codes, quantizer, scale, zero_point, cols, dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in int32 words along the last dimension, element 0 in the lowest bits, as checkpoints have them.

    Args:
        codes: int8 ``[..., cols]`` within ``bits``; stored unsigned, as ``code + 2 ** (bits - 1)``.
        bits: 2 to 8. Of 3, 5, 6 and 7 bits some codes straddle two words.

    Returns:
        int32 ``[..., words]``; bits beyond the last code are 0.
    """
    return torch.ops.qat.pack(codes, bits)


def unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The inverse of ``pack``.

    Args:
        packed: int32 ``[..., words]``.
        bits: 2 to 8.
        cols: Codes along the last dimension; what the words hold, short of less than a word.

    Returns:
        int8 ``[..., cols]``.
    """
    return torch.ops.qat.unpack(packed, bits, cols)
