"""Floats of few bits and codes of scales, against ml_dtypes, torch and definitions written here in float64."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torchqat import ops

FLOATS = {
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, 6.0, 1),
    "fp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 3),
    "fp6_e3m2": (ml_dtypes.float6_e3m2fn, 28.0, 2),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 3),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0, 2),
}
ONE = torch.ones(1, 1)


def rounded(x, grid, scale=ONE):
    return ops.fake_quantize(x, f"fixed {grid} -1x-1 float32", scale)


def cast(x, grid):
    """What ml_dtypes makes of ``x``, saturated, as everywhere here."""
    kind, most, _ = FLOATS[grid]
    return torch.from_numpy(np.clip(x.numpy(), -most, most).astype(kind).astype(np.float32))


def every(dtype):
    """Every finite number of a half type, in float32."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    return x[x.isfinite()]


@pytest.mark.parametrize("grid", FLOATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number_rounds_as_ml_dtypes_casts(grid, dtype):
    x = every(dtype)
    y = rounded(x, grid)
    assert torch.equal(y, cast(x, grid) + 0.0)  # -0 becomes 0
    assert torch.equal(rounded(x.to(dtype), grid).float(), y.to(dtype).float())


@pytest.mark.parametrize("grid", FLOATS)
def test_every_border_and_its_neighbours(grid):
    kind = FLOATS[grid][0]
    codes = np.arange(2 ** {"fp4": 4, "fp6": 6, "fp8": 8}[grid[:3]]).astype(np.uint8).view(kind)
    levels = torch.from_numpy(codes.astype(np.float32)).unique()
    levels = levels[levels.isfinite()].double()
    borders = ((levels[1:] + levels[:-1]) / 2).float()
    assert torch.equal(borders.double(), (levels[1:] + levels[:-1]) / 2)  # exact in float32
    for x in (borders, torch.nextafter(borders, -ONE[0] * 1e9), torch.nextafter(borders, ONE[0] * 1e9)):
        assert torch.equal(rounded(x, grid), cast(x, grid) + 0.0)


@pytest.mark.parametrize("grid", FLOATS)
def test_rounding_is_idempotent_ordered_and_follows_powers_of_two(grid):
    x = torch.randn(1, 20000).sort().values * FLOATS[grid][1] / 3
    y = rounded(x, grid)
    assert torch.equal(rounded(y, grid), y)
    assert (y.diff() >= 0).all()
    assert torch.equal(rounded(x * 0.125, grid, ONE * 0.125), y * 0.125)


@pytest.mark.parametrize("grid", FLOATS)
def test_codes_stand_for_the_levels(grid):
    x = torch.randn(8, 64) * FLOATS[grid][1] / 3
    text = f"minmax {grid} 1x32 bfloat16"
    scale, zero = ops.choose_qparams(x, text)
    codes = ops.quantize(x, text, scale, zero)
    assert codes.dtype == (torch.float8_e5m2 if grid == "fp8_e5m2" else torch.float8_e4m3fn)
    assert torch.equal(ops.dequantize(codes, scale, None, (1, 32)), ops.fake_quantize(x, text))


def mx_scale(x, rule, grid):
    """The scale of a block by OCP MX and what engines make of it, in float64 (numerics.md 7c)."""
    _, most, mantissa = FLOATS[grid]
    amax = x.double().abs().amax(-1)
    if rule == "ceil":
        return torch.exp2(torch.ceil(torch.log2(amax / most)))
    if rule == "even":
        step = torch.exp2(torch.floor(torch.log2(amax)) - mantissa)
        amax = (amax / step).round() * step
    return torch.exp2(torch.floor(torch.log2(amax)) - np.floor(np.log2(most)))


@pytest.mark.parametrize("grid", FLOATS)
@pytest.mark.parametrize("rule", ["floor", "even", "ceil"])
def test_powers_of_two_by_each_rule(grid, rule):
    x = torch.randn(4000, 32) * torch.exp2(torch.randn(4000, 1) * 8)
    scale, _ = ops.choose_qparams(x, f"minmax {grid} 1x32 e8m0_{rule}")
    assert torch.equal(scale[:, 0].double(), mx_scale(x, rule, grid))
    clipped = (x / scale).abs().amax() > FLOATS[grid][1]
    assert clipped == (rule != "ceil")


def test_learned_powers_of_two_round_as_torch_casts():
    x = torch.exp2(torch.linspace(-60, 60, 5001)).view(-1, 1)
    x = torch.cat([x, torch.exp2(torch.arange(-20.0, 20.0)).view(-1, 1) * 1.5])
    rounded_scale, _ = ops.round_qparams(x, "learned fp4_e2m1 1x32 e8m0_even")
    assert torch.equal(rounded_scale, x.to(torch.float8_e8m0fnu).float())


def test_e4m3_scales_round_as_torch_casts():
    x = torch.rand(5000, 1) * 500
    rounded_scale, _ = ops.round_qparams(x, "learned fp4_e2m1 1x16 e4m3")
    assert torch.equal(rounded_scale, x.clamp(2.0**-9, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("text", ["minmax fp4_e2m1 1x32 e8m0_even", "minmax fp4_e2m1 1x16 e4m3*float32@-1x-1"])
def test_quantizing_again_changes_nothing(text):
    y = ops.fake_quantize(torch.randn(64, 128), text)
    scale, zero = ops.choose_qparams(y, text)
    assert torch.equal(ops.fake_quantize(y, text.replace("minmax", "fixed"), scale, zero), y)
