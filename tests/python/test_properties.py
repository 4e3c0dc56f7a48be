"""Properties that hold for every weight, grid and width, on what hypothesis thinks of."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchqat import ops

GRIDS = ("narrow", "full", "signed", "asymmetric")
_RANGES = {
    "narrow": lambda bits: (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1),
    "full": lambda bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    "signed": lambda bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    "asymmetric": lambda bits: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
}


@st.composite
def weights(draw):
    """A matrix of 32 columns, from the smallest to the largest magnitudes that training meets, zeros and ties among them."""
    rows = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**31))
    exponent = draw(st.integers(-20, 12))
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    kind = draw(st.sampled_from(("plain", "zeros", "ties", "one sided", "outlier")))
    if kind == "zeros":
        x[:, ::3] = 0.0
    elif kind == "ties":
        x = (x * 4 / 2.0**exponent).round() * 2.0**exponent
    elif kind == "one sided":
        x = x.abs()
    elif kind == "outlier":
        x[:, 0] *= 1000.0
    return x


groups = st.sampled_from(((1, 8), (1, 16), (1, 32), (1, -1), (-1, -1)))
bits = st.integers(2, 8)
grids = st.sampled_from(GRIDS)


@settings(max_examples=300, deadline=None)
@given(weights(), groups, bits, grids)
def test_quantizing_a_dequantized_weight_changes_nothing(x, block, width, grid):
    scale, zero = ops.choose_qparams(x, block, width, grid, "minmax", torch.bfloat16)
    codes = ops.quantize(x, scale, zero, block, *_RANGES[grid](width))
    values = ops.dequantize(codes, scale, zero, block)
    assert torch.equal(ops.quantize(values, scale, zero, block, *_RANGES[grid](width)), codes)
    assert torch.equal(ops.fake_quantize(values, scale, zero, block, *_RANGES[grid](width)), values)
    assert torch.equal(ops.fake_quantize(x, scale, zero, block, *_RANGES[grid](width)), values)


@settings(max_examples=300, deadline=None)
@given(weights(), bits, grids)
def test_a_larger_weight_has_no_smaller_code(x, width, grid):
    """In order of the codes for positive scales, against it for negative ones."""
    scale, zero = ops.choose_qparams(x, (1, -1), width, grid, "minmax", torch.float16)
    codes = ops.quantize(x, scale, zero, (1, -1), *_RANGES[grid](width)).int() * scale.sign().int()
    order = x.argsort(-1)
    assert (codes.gather(-1, order).diff(dim=-1) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(weights(), groups, bits, grids, st.integers(-6, 6), st.sampled_from(("minmax", "mse")))
def test_powers_of_two_go_into_the_scale(x, block, width, grid, power, method):
    factor = 2.0**power
    scale, zero = ops.choose_qparams(x, block, width, grid, method, torch.bfloat16)
    other, other_zero = ops.choose_qparams(x * factor, block, width, grid, method, torch.bfloat16)
    assume(scale.abs().min() > 1e-6)
    assert torch.equal(other, scale * factor) and torch.equal(other_zero, zero)
    ends = _RANGES[grid](width)
    assert torch.equal(
        ops.quantize(x, scale, zero, block, *ends), ops.quantize(x * factor, other, other_zero, block, *ends)
    )


@settings(max_examples=200, deadline=None)
@given(weights(), bits, st.sampled_from(("narrow", "asymmetric")))
def test_no_weight_is_further_from_its_level_than_half_a_step(x, width, grid):
    """Of grids that hold the whole range, but for the rounding of the scale and of the zero point."""
    scale, zero = ops.choose_qparams(x, (1, 16), width, grid, "minmax", torch.float32)
    values = ops.fake_quantize(x, scale, zero, (1, 16), *_RANGES[grid](width))
    steps = scale.repeat_interleave(16, 1)
    allowed = 0.5 if grid == "narrow" else 1.0
    assert ((x - values).abs() <= steps * (allowed + 1e-5)).all()


@settings(max_examples=200, deadline=None)
@given(weights(), st.sampled_from((2, 3, 4, 8)))
def test_what_is_packed_comes_back(x, width):
    low, high = _RANGES["full"](width)
    codes = (x * 1000).nan_to_num().clamp(low, high).round().to(torch.int8)
    assert torch.equal(ops.unpack(ops.pack(codes, width), width, codes.shape[1]), codes)


@settings(max_examples=100, deadline=None)
@given(weights(), groups, st.integers(3, 8), st.sampled_from(("narrow", "full")))
def test_a_searched_scale_is_no_worse_than_the_range(x, block, width, grid):
    def error(method):
        scale, zero = ops.choose_qparams(x, block, width, grid, method, torch.float32)
        return (ops.fake_quantize(x, scale, zero, block, *_RANGES[grid](width)) - x).double().square().sum()

    assert error("mse") <= error("minmax") * (1 + 1e-6)
