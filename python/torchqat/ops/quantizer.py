"""How a tensor is quantized, as one line of text: what every operator of rounding takes."""

import torch

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def quantizer_text(
    mode: str,
    block: tuple[int, int],
    bits: int = 8,
    grid: str = "narrow",
    scale: str | torch.dtype = "float32",
    gradient_scale: float = 1.0,
) -> str:
    """The text of a quantizer, such as ``minmax int4 narrow 1x32 bfloat16``.

    Args:
        mode: ``minmax`` (scales found from each block's range), ``absmean`` (from its mean magnitude; ``int2 narrow``
            alone), ``fixed`` (given) or ``learned`` (given and trained).
        block: Rows and columns that share a scale; -1 takes a whole axis.
        bits: 2 to 8, of whole levels; not read for ``iq4_nl`` and floats.
        grid: ``narrow``, ``full``, ``signed``, ``asymmetric`` or ``offset``; ``iq4_nl``, sixteen of a table; or a
            float: ``fp4_e2m1``, ``fp6_e2m3``, ``fp6_e3m2``, ``fp8_e4m3`` or ``fp8_e5m2``.
        scale: What a scale is stored in: a dtype, or ``float32``, ``bfloat16``, ``float16``, ``e8m0_floor``,
            ``e8m0_even``, ``e8m0_ceil``, ``e4m3``, ``int6`` or ``int8``; with an outer scale ``e4m3*float32@-1x-1``,
            one float32 for each block of -1x-1.
        gradient_scale: Factor on the gradients of learned parameters.
    """
    levels = grid if grid.startswith(("fp", "iq")) else f"int{bits} {grid}"
    factor = f" {gradient_scale!r}" if mode == "learned" and gradient_scale != 1.0 else ""
    return f"{mode} {levels} {block[0]}x{block[1]} {_DTYPES.get(scale, scale)}{factor}"
