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


def quant_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    weight_scale: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    input_scale: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    kept: list[Tensor] | None = None,
    weight_quantizer: str = "",
    input_quantizer: str = "",
) -> Tensor:
    """A linear layer on a fake-quantized weight and input whose rounded values live only while they are multiplied.

    Nothing is saved for the backward but the arguments; rounded values lie in one buffer that the layers share.

    Args:
        x: ``[..., in]``.
        weight: ``[out, in]``, in the dtype of ``x``, or float32 beside half inputs.
        bias: ``[out]``.
        weight_scale: float32, one per block, for fixed and learned quantizers.
        weight_zero_point: One per block, int8 for fixed quantizers, float32 for learned ones.
        input_scale: The same for the input.
        input_zero_point: The same for the input.
        kept: The rounded weight, ``[w]`` or ``[w, scale, zero_point]``, or its codes from ``encode``, where they are known.
        weight_quantizer: Such as ``minmax int4 narrow 1x32 bfloat16``: minmax, fixed or learned; width; grid; block;
            dtype of the scale; for learned ones the factor on the gradients. Empty for none.
        input_quantizer: The same for the input.

    Raises:
        TypeError: The dtypes do not go together.
        ValueError: A shape or a quantizer's text is wrong.
    """
    return torch.ops.qat.quant_linear(
        x, weight, bias, weight_scale, weight_zero_point, input_scale, input_zero_point, kept or [],
        weight_quantizer, input_quantizer,
    )  # fmt: skip


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


def cpu_capability() -> str:
    """Instructions that the CPU kernels use: ``avx512``, ``avx2`` or ``portable``.

    The environment variable ``TORCHQAT_CPU_CAPABILITY`` asks for less than the processor has; the results are the same.
    """
    return torch.ops.qat.cpu_capability()


def kept_bytes() -> int:
    """Bytes of memory that torchqat keeps for quantized values on the CPU, in use or not."""
    return torch.ops.qat.kept_bytes()


def most_kept_bytes() -> int:
    """The most that ``kept_bytes`` has been since the last ``release_kept_memory``."""
    return torch.ops.qat.most_kept_bytes()


def release_kept_memory() -> None:
    """Give the kept memory that is not in use back to the system, and what the allocator keeps of memory that was freed."""
    torch.ops.qat.release_kept_memory()


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


def fake_quantize_cache(
    x: Tensor,
    scale: Tensor | None,
    granularity: str,
    group_size: int = 0,
    bits: int = 8,
    grid: str = "narrow",
    first: int = 0,
) -> Tensor:
    """Keys or values as a quantized cache gives them back; gradients pass straight through. Equation (28).

    Args:
        x: ``[batch, heads, tokens, head_size]``.
        scale: float32 ``[1]`` for ``tensor``, ``[heads]`` for ``head``; ``None`` for the others.
        granularity: ``tensor``, ``head``, ``token`` (a head of a token), ``group`` (``group_size`` channels of it) or
            ``channel`` (a channel over ``group_size`` tokens in turn; those of an incomplete group stay as they are).
        group_size: For ``group`` and ``channel``.
        bits: 2 to 8; not read for FP8.
        grid: ``narrow``, ``full``, ``signed``, ``asymmetric`` (levels from the block's smallest element up),
            ``fp8_e4m3`` or ``fp8_e5m2``.
        first: Tokens at the beginning that stay as they are.
    """
    return torch.ops.qat.fake_quantize_cache(x, scale, granularity, group_size, bits, grid, first)


def quantized_pairs(like: Tensor, queries: int, keys: int, group_size: int, recent: int, first: int) -> Tensor:
    """Which tokens each query finds quantized: bool ``[queries, keys]``, the queries being the last of the tokens."""
    return torch.ops.qat.quantized_pairs(like, queries, keys, group_size, recent, first)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of 2, 3, 4 or 8 bits, offset to unsigned, in int32 words along the last dimension, element 0 lowest."""
    return torch.ops.qat.pack(codes, bits)


def unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The inverse of ``pack``: int8 ``[..., cols]``."""
    return torch.ops.qat.unpack(packed, bits, cols)


def pack_panels(codes: Tensor, bits: int, group_size: int) -> Tensor:
    """Codes as ``packed_linear`` reads them: panels of 16 rows, 8 codes of 4 bits or 4 of 8 bits to an int32 word.

    Args:
        codes: int8 ``[rows, cols]`` within ``bits``.
        bits: 4 or 8.
        group_size: Columns that share a scale; divides ``cols``. Each group begins a word.

    Returns:
        int32 ``[panels, words, 16]``; rows that are not there have code 0.
    """
    return torch.ops.qat.pack_panels(codes, bits, group_size)


def unpack_panels(panels: Tensor, bits: int, group_size: int, rows: int, cols: int) -> Tensor:
    """The inverse of ``pack_panels``: int8 ``[rows, cols]``."""
    return torch.ops.qat.unpack_panels(panels, bits, group_size, rows, cols)


def packed_linear(
    x: Tensor,
    panels: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
    out_features: int,
) -> Tensor:
    """A linear layer on a weight that stays packed, for inference. Equation (35).

    Args:
        x: float32, float16 or bfloat16 ``[..., in]``.
        panels: The weight's codes, of ``pack_panels``.
        scale: ``[panels, groups, 16]`` of ``torch.ops.qat.pack_panel_values``, float32, float16 or bfloat16.
        zero_point: int8, shaped like ``scale``; ``None`` means 0.
        bias: ``[out]`` in the dtype of ``x``, or ``None``.
        bits: 4 or 8.
        group_size: Columns that share a scale.
        out_features: Rows of the weight.

    Returns:
        ``[..., out]`` in the dtype of ``x``. Sums run in float32. A row's result does not depend on the rows beside it.
    """
    return torch.ops.qat.packed_linear(x, panels, scale, zero_point, bias, bits, group_size, out_features)
