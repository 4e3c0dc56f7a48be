"""Rounding in training: to levels that are given, found or learned."""

import torch
from torch import Tensor

from torchqat.ops.deprecated import accepts_old_arguments, old_fake_quantize


@accepts_old_arguments(old_fake_quantize)
def fake_quantize(
    x: Tensor,
    quantizer: str,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    outer_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Round ``x`` to the levels of a quantizer; gradients pass straight through. Equations (1) to (9).

    Args:
        x: float32, float16 or bfloat16, any shape.
        quantizer: Such as ``minmax int4 narrow 1x32 bfloat16`` (``quantizer_text``).
        scale: float32 ``[grid_rows, grid_cols]`` for fixed and learned quantizers; those of learned ones receive
            gradient (5).
        zero_point: Shaped like ``scale``: int8 for fixed, float32 for learned quantizers, which receive gradient (6);
            ``None`` means 0. On the grid ``offset`` the offset, float32.
        outer_scale: float32, one per outer block, of quantizers that have them; ``None``: found.
        dtype: Of the result: that of ``x``, the default, or for float32 ``x`` float16 or bfloat16.

    Returns:
        ``(q - zero_point) * scale (+ offset)`` in the shape of ``x``; elements that are not finite become NaN.

    Raises:
        ValueError: The quantizer's text is wrong, or a parameter does not go with it.

    Example:
        >>> fake_quantize(torch.tensor([0.26, 9.0]), "fixed int4 full -1x-1 float32", torch.tensor([[0.5]]))
        tensor([0.5000, 3.5000])
    """
    return torch.ops.qat.fake_quantize(x, quantizer, scale, zero_point, outer_scale, dtype=dtype)[0]
