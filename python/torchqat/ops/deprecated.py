"""The arguments and operators that ``quantizer`` has taken the place of; they go with the next version.

Block, bits, ends of the grid and dtype of the scale came one by one. Each old call is one call of the new operator.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torchqat.ops.block import Block
from torchqat.ops.quantizer import quantizer_text

_FLOATS = {448: "fp8_e4m3", 57344: "fp8_e5m2"}


def accepts_old_arguments(old: Callable) -> Callable:
    """A decorator: a call whose second argument is no text, and names no ``quantizer``, is one of ``old``."""

    def decorate(new: Callable) -> Callable:
        @functools.wraps(new)
        def call(first: Tensor, *args: object, **kwargs: object) -> object:
            if (args and isinstance(args[0], str)) or "quantizer" in kwargs:
                return new(first, *args, **kwargs)
            _warn(f"torchqat.ops.{new.__name__} with a block and the ends of a grid", "a quantizer's text")
            return old(first, *args, **kwargs)

        return call

    return decorate


def _warn(what: str, instead: str) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(f"{what} is deprecated; use {instead}.", DeprecationWarning, stacklevel=3)


def _grid_between(low: int, high: int, asymmetric: bool) -> tuple[int, str]:
    """Bits and grid of levels between two ends."""
    if low == -high and high in _FLOATS:
        return 8, _FLOATS[high]
    bits = (high + 1).bit_length()
    if high + 1 == 1 << (bits - 1) and 2 <= bits <= 8:
        if low == -high:
            return bits, "narrow"
        if low == -high - 1:
            return bits, "asymmetric" if asymmetric else "full"
    raise ValueError(
        f"[torchqat.ops] quant_min must be below quant_max, both the ends of a grid of 2 to 8 bits such as -8 and 7, "
        f"but they are {low} and {high}."
    )


def _given(mode: str, block: Block, ends: tuple[int, int], zero_point: Tensor | None, *rest: object) -> str:
    return quantizer_text(mode, block, *_grid_between(*ends, zero_point is not None), *rest)


def old_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    block: Block,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    text = _given("fixed", block, (quant_min, quant_max), zero_point)
    return torch.ops.qat.fake_quantize(x, text, scale, zero_point, dtype=dtype)[0]


def _old_dynamic(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str,
    scale_dtype: torch.dtype,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.qat.fake_quantize(x, quantizer_text("minmax", block, bits, grid, scale_dtype), dtype=dtype)


def _old_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    block: Block,
    quant_min: int,
    quant_max: int,
    scale_dtype: torch.dtype,
    gradient_scale: float,
    dtype: torch.dtype | None = None,
) -> Tensor:
    text = _given("learned", block, (quant_min, quant_max), zero_point, scale_dtype, gradient_scale)
    return torch.ops.qat.fake_quantize(x, text, scale, zero_point, dtype=dtype)[0]


def fake_quantize_dynamic(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str = "narrow",
    scale_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Deprecated: ``fake_quantize`` with a ``minmax`` quantizer, whose parts come one by one.

    Args:
        x: As of ``fake_quantize``, and so is ``dtype``.
        block: As of ``quantizer_text``, and so are ``bits`` and ``grid``.
        bits: 2 to 8.
        grid: ``narrow``, ``full``, ``signed`` or ``asymmetric``.
        scale_dtype: What scales are stored in.
        dtype: Of the result.

    Returns:
        The rounded tensor; scale, float32, and zero point, int8, both ``[grid_rows, grid_cols]``.
    """
    _warn("torchqat.ops.fake_quantize_dynamic", "fake_quantize with a minmax quantizer")
    return _old_dynamic(x, block, bits, grid, scale_dtype, dtype)


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
    """Deprecated: ``fake_quantize`` with a ``learned`` quantizer, whose parts come one by one.

    Args:
        x: As of ``fake_quantize``, and so are ``scale``, ``zero_point`` and ``dtype``.
        scale: float32 ``[grid_rows, grid_cols]``.
        zero_point: float32, shaped like ``scale``, or ``None``.
        block: As of ``quantizer_text``, and so is ``gradient_scale``.
        quant_min: The lowest level of a grid of 2 to 8 bits, such as -8.
        quant_max: The highest, such as 7.
        scale_dtype: What scales are stored in.
        gradient_scale: Factor on the gradients of scale and zero point.
        dtype: Of the result.

    Raises:
        ValueError: ``quant_min`` and ``quant_max`` are not the ends of a grid.
    """
    _warn("torchqat.ops.fake_quantize_learned", "fake_quantize with a learned quantizer")
    return _old_learned(x, scale, zero_point, block, quant_min, quant_max, scale_dtype, gradient_scale, dtype)


def old_choose_qparams(
    x: Tensor,
    block: Block,
    bits: int,
    grid: str = "narrow",
    method: str = "minmax",
    scale_dtype: torch.dtype = torch.float32,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return torch.ops.qat.choose_qparams(x, quantizer_text("minmax", block, bits, grid, scale_dtype), method, importance)


def old_round_qparams(
    scale: Tensor, zero_point: Tensor | None, quant_min: int, quant_max: int, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    text = _given("learned", (1, 1), (quant_min, quant_max), zero_point, scale_dtype)
    return torch.ops.qat.round_qparams(scale, text, zero_point)


def old_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, block: Block, quant_min: int, quant_max: int
) -> Tensor:
    return torch.ops.qat.quantize(x, _given("fixed", block, (quant_min, quant_max), zero_point), scale, zero_point)


def old_quantize_with_feedback(
    weight: Tensor,
    offset: Tensor,
    transfer: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
) -> tuple[Tensor, Tensor, Tensor]:
    bits, grid = _grid_between(quant_min, quant_max, False)
    text = quantizer_text("fixed", (1, -1), bits, grid)
    return torch.ops.qat.quantize_with_feedback(weight, text, offset, transfer, scale, zero_point)


def old_encode(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    block: Block,
    bits: int,
    grid: str = "narrow",
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    mode = "minmax" if scale is None else "fixed"
    return torch.ops.qat.encode(x, quantizer_text(mode, block, bits, grid, scale_dtype), scale, zero_point)


def old_decode(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    block: Block,
    bits: int,
    grid: str,
    cols: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    text = quantizer_text("fixed", block, bits, grid)
    return torch.ops.qat.decode(codes, text, scale, zero_point, cols, dtype)


# The same under torch.ops.qat: operators of their own, and overloads beside the new ones of a name.
_OPERATORS = {
    "fake_quantize.ends(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, int quant_min, int quant_max, *, "
    "ScalarType? dtype=None) -> Tensor": old_fake_quantize,
    "fake_quantize_dynamic(Tensor x, int[2] block, int bits, str grid, ScalarType scale_dtype, *, "
    "ScalarType? dtype=None) -> (Tensor, Tensor, Tensor)": _old_dynamic,
    "fake_quantize_learned(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, int quant_min, int quant_max, "
    "ScalarType scale_dtype, float gradient_scale, *, ScalarType? dtype=None) -> Tensor": _old_learned,
    "choose_qparams.bits(Tensor x, int[2] block, int bits, str grid, str method, ScalarType scale_dtype, "
    "Tensor? importance=None) -> (Tensor, Tensor)": old_choose_qparams,
    "round_qparams.ends(Tensor scale, Tensor? zero_point, int quant_min, int quant_max, ScalarType scale_dtype) "
    "-> (Tensor, Tensor)": old_round_qparams,
    "quantize.ends(Tensor x, Tensor scale, Tensor? zero_point, int[2] block, int quant_min, int quant_max) "
    "-> Tensor": old_quantize,
    "quantize_with_feedback.ends(Tensor weight, Tensor offset, Tensor transfer, Tensor scale, Tensor zero_point, "
    "int quant_min, int quant_max) -> (Tensor, Tensor, Tensor)": old_quantize_with_feedback,
    "encode.bits(Tensor x, Tensor? scale, Tensor? zero_point, int[2] block, int bits, str grid, "
    "ScalarType scale_dtype) -> (Tensor, Tensor, Tensor)": old_encode,
    "decode.bits(Tensor codes, Tensor scale, Tensor zero_point, int[2] block, int bits, str grid, SymInt cols, "
    "ScalarType dtype) -> Tensor": old_decode,
}
_LIBRARY = torch.library.Library("qat", "FRAGMENT")  # as long as it lives, its operators do
for _schema, _old in _OPERATORS.items():
    _LIBRARY.define(_schema)
    _LIBRARY.impl(_schema.split("(")[0], _old, "CompositeImplicitAutograd")
