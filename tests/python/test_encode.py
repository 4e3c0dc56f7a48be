"""``encode`` and ``decode``: what a layer keeps between forward and backward stands for the same bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import matches
from torchqat import ops

GRIDS = ["narrow", "full", "signed", "asymmetric"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 300),
    block=st.sampled_from([(1, 32), (1, 128), (1, 7), (1, -1), (-1, -1), (4, 16), (3, 5)]),
    bits=st.integers(2, 8),
    grid=st.sampled_from(GRIDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_decoded_codes_are_the_rounded_tensor(rows, cols, block, bits, grid, dtype, seed):
    x = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected, scale, zero_point = ops.fake_quantize_dynamic(x, block, bits, grid, torch.bfloat16)
    codes, found_scale, found_zero = ops.encode(x, None, None, block, bits, grid, torch.bfloat16)
    assert torch.equal(found_scale, scale) and torch.equal(found_zero, zero_point)
    decoded = ops.decode(codes, scale, zero_point, block, bits, grid, cols, dtype)
    assert torch.equal(decoded, expected)
    smaller = ops.round_qparams(scale * 0.5, None, -8, 7, torch.bfloat16)[0]
    codes, kept_scale, kept_zero = ops.encode(x, smaller, zero_point, block, bits, grid, torch.bfloat16)
    top = 2 ** (bits - 1)
    expected = ops.fake_quantize(x, smaller, zero_point, block, 1 - top if grid == "narrow" else -top, top - 1)
    assert torch.equal(ops.decode(codes, kept_scale, kept_zero, block, bits, grid, cols, dtype), expected)


def test_up_to_four_bits_two_codes_share_a_byte(device):
    x = torch.randn(8, 128, device=device)
    for bits, size in [(2, 64), (3, 64), (4, 64), (5, 128), (8, 128)]:
        assert ops.encode(x, None, None, (1, 32), bits, "full")[0].shape == (8, size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_that_is_not_finite_decodes_to_nan(value, dtype, device):
    x = torch.randn(4, 96, device=device).to(dtype)
    x[1, 40] = value
    expected = ops.fake_quantize_dynamic(x, (1, 32), 4, "full")[0]
    for given_scale in (None, torch.ones(4, 3, device=device)):
        codes, scale, zero = ops.encode(x, given_scale, None, (1, 32), 4, "full")
        decoded = ops.decode(codes, scale, zero, (1, 32), 4, "full", 96, dtype)
        assert decoded[1, 32:64].isnan().all() and int(decoded.isnan().sum()) == 32
        if given_scale is None:
            others = ~decoded.isnan()
            assert torch.equal(decoded[others], expected[others])


def test_a_block_of_several_rows_is_marked_whole(device):
    x = torch.randn(8, 64, device=device)
    x[1, 3] = float("nan")
    _, scale, _ = ops.encode(x, None, None, (4, 32), 4, "full")
    assert scale.isnan().tolist() == [[True, False], [False, False]]


def test_wrong_arguments_are_one_sentence(device):
    x = torch.randn(4, 96, device=device)
    codes, scale, zero = ops.encode(x, None, None, (1, 32), 4, "full")
    with pytest.raises(ValueError, match=matches("ops.bytes-of-codes")):
        ops.decode(codes, scale, zero, (1, 32), 4, "full", 90)
    with pytest.raises(ValueError, match=matches("ops.entries-of-codes")):
        ops.decode(codes, scale[:, :2], zero, (1, 32), 4, "full", 96)
    with pytest.raises(TypeError, match=matches("ops.codes-of-bytes")):
        ops.decode(codes.to(torch.int8), scale, zero, (1, 32), 4, "full", 96)
    with pytest.raises(ValueError, match=matches("ops.zero-point-alone")):
        ops.encode(x, None, zero, (1, 32), 4, "full")
