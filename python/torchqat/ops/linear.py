"""Linear layers on quantized weights: fake-quantized in training, packed in inference."""

import torch
from torch import Tensor


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
    weight_outer_scale: Tensor | None = None,
    input_outer_scale: Tensor | None = None,
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
        weight_quantizer: Such as ``minmax int4 narrow 1x32 bfloat16``: minmax, absmean, fixed or learned; width; grid;
            block; dtype of the scale; for learned ones the factor on the gradients. Empty for none.
        input_quantizer: The same for the input.
        weight_outer_scale: float32, one per outer block of the weight, to be shared with other layers; ``None``: found.
        input_outer_scale: The same for the input, from calibration.

    Raises:
        TypeError: The dtypes do not go together.
        ValueError: A shape or a quantizer's text is wrong.
    """
    return torch.ops.qat.quant_linear(
        x, weight, bias, weight_scale, weight_zero_point, input_scale, input_zero_point, kept or [],
        weight_quantizer, input_quantizer, weight_outer_scale, input_outer_scale,
    )  # fmt: skip


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
    """The inverse of ``pack_panels``.

    Args:
        panels: int32 ``[panels, words, 16]``.
        bits: 4 or 8.
        group_size: Columns that share a scale.
        rows: Of the weight.
        cols: Of the weight.

    Returns:
        int8 ``[rows, cols]``.
    """
    return torch.ops.qat.unpack_panels(panels, bits, group_size, rows, cols)
