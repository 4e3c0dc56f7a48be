"""The cache of keys and values, as an engine stores it."""

import torch
from torch import Tensor


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
