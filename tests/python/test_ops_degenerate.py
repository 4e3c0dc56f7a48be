"""The table of degenerate groups: each has one stated behaviour."""

import math

import pytest
import torch
from torchqat import ops

GRIDS = ("narrow", "full", "signed", "asymmetric")


@pytest.fixture(params=GRIDS)
def grid(request):
    return request.param


def _quantize(row, grid, scale_dtype=torch.float32, bits=4):
    return ops.fake_quantize_dynamic(torch.tensor([row]), (1, -1), bits, grid, scale_dtype)


def test_all_zeros_stay_zero(grid):
    y, scale, zero_point = _quantize([0.0] * 32, grid)
    assert torch.equal(y, torch.zeros(1, 32)) and scale.item() == 1.0


def test_zero_is_exact(grid):
    row = [0.0, *torch.randn(31).tolist()]
    assert _quantize(row, grid)[0][0, 0] == 0.0


@pytest.mark.parametrize("value", (0.7, -0.7))
def test_a_constant_is_exact_where_the_grid_reaches_it(value):
    for grid in ("narrow", "signed", "asymmetric"):
        y = _quantize([value] * 32, grid)[0]
        torch.testing.assert_close(y, torch.full((1, 32), value), rtol=3e-7, atol=0)  # one rounding of the scale


def test_a_single_element_is_a_constant():
    torch.testing.assert_close(_quantize([3.3], "narrow")[0], torch.tensor([[3.3]]), rtol=3e-7, atol=0)


@pytest.mark.parametrize("scale_dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_a_tiny_range_collapses_to_zero_and_stays_finite(grid, scale_dtype):
    y, scale, _ = _quantize([1e-42, -1e-42] * 16, grid, scale_dtype)
    assert y.isfinite().all() and y.abs().max() <= 1e-42
    assert scale.abs().item() > 0 and (1 / scale).isfinite().all()


def test_half_precision_scales_do_not_become_subnormal(grid):
    scale = _quantize([1e-5, -1e-5] * 16, grid, torch.float16)[1]
    assert scale.abs().item() == 2.0**-14


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_what_is_not_finite_comes_out_as_nan_and_leaves_the_rest_alone(grid, bad):
    row = torch.randn(32).tolist()
    clean = _quantize([*row, 0.0], grid)
    dirty = _quantize([*row, bad], grid)
    assert torch.equal(dirty[1], clean[1])
    assert torch.equal(dirty[0][0, :32], clean[0][0, :32])
    assert dirty[0][0, 32].isnan()


def test_nothing_finite(grid):
    y, scale, zero_point = _quantize([math.nan, math.inf], grid)
    assert y.isnan().all() and scale.item() == 1.0


def test_the_largest_values_do_not_overflow(grid):
    assert _quantize([3.4e38, -3.4e38] * 8, grid, bits=8)[1].isfinite().all()
    # A level may lie half a step beyond the range, which must itself be a float32 number.
    assert _quantize([3.3e38, -3.3e38] * 8, grid, bits=8)[0].isfinite().all()


def test_empty_tensors(grid):
    for shape in ((0, 8), (4, 0), (0,)):
        y, scale, zero_point = ops.fake_quantize_dynamic(torch.empty(shape), (1, -1), 4, grid)
        assert y.shape == shape and scale.numel() == 0 and zero_point.numel() == 0
        assert ops.choose_qparams(torch.empty(shape), (1, 32), 4, grid, "mse")[0].numel() == 0


def test_a_group_that_does_not_divide_has_a_short_last_block(grid):
    x = torch.randn(3, 50)
    y, scale, _ = ops.fake_quantize_dynamic(x, (1, 32), 4, grid)
    assert scale.shape == (3, 2)
    assert torch.equal(y[:, 32:], ops.fake_quantize_dynamic(x[:, 32:], (1, -1), 4, grid)[0])


def test_a_scalar_is_a_matrix_of_one():
    assert ops.fake_quantize_dynamic(torch.tensor(2.0), (-1, -1), 8)[0].shape == ()


def test_a_capped_float16_scale_clips_and_masks(device):
    """65504 * 7 is the most that float16 scales reach at 4 bits; beyond it even the narrow grid clips."""
    x = torch.tensor([[1e6, -1e6, 1e5, 0.0]], device=device, requires_grad=True)
    y, scale, _ = ops.fake_quantize_dynamic(x, (1, -1), 4, "narrow", torch.float16)
    assert scale.item() == 65504.0 and y[0, 0].item() == 7 * 65504.0 and y[0, 1].item() == -7 * 65504.0
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0, 1.0, 1.0]]
