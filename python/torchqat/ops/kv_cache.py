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
    scale_code: str = "float32",
) -> Tensor:
    """Keys or values as a quantized cache gives them back; gradients pass straight through. Equation (28).

    Args:
        x: ``[batch, heads, tokens, head_size]``.
        scale: float32 ``[1]`` for ``tensor``, ``[heads]`` for ``head``; ``None`` for the others, but for ``group`` with
            scales in ``e4m3``, which takes an outer scale, float32 ``[1]``, or ``None`` for 1.
        granularity: ``tensor``, ``head``, ``token`` (a head of a token), ``group`` (``group_size`` channels of it) or
            ``channel`` (a channel over ``group_size`` tokens in turn; those of an incomplete group stay as they are).
        group_size: For ``group`` and ``channel``.
        bits: 2 to 8; not read for floats.
        grid: ``narrow``, ``full``, ``signed``, ``asymmetric`` (levels from the block's smallest element up),
            or a float: ``fp8_e4m3``, ``fp8_e5m2``, ``fp4_e2m1`` and the like.
        first: Tokens at the beginning that stay as they are.
        scale_code: What scales that are found in the call are stored in: ``float32``, ``e4m3``, ``e8m0_floor`` and the like.

    Returns:
        A tensor like ``x``.
    """
    return torch.ops.qat.fake_quantize_cache(x, scale, granularity, group_size, bits, grid, first, scale_code)


def quantized_pairs(like: Tensor, queries: int, keys: int, group_size: int, recent: int, first: int) -> Tensor:
    """Which tokens each query finds quantized in a cache that keeps the newest ones as they are. Equation (28).

    A token is quantized once the last of its group is more than ``recent`` tokens back; a query's own is 0 back.

    Args:
        like: A tensor on the device of the result.
        queries: How many there are; they are the last of the tokens.
        keys: How many tokens there are.
        group_size: Tokens that are quantized together, counted after the first ones; at least 1.
        recent: Tokens before a query that stay as they are.
        first: Tokens at the beginning that stay as they are.

    Returns:
        bool ``[queries, keys]``.
    """
    return torch.ops.qat.quantized_pairs(like, queries, keys, group_size, recent, first)
