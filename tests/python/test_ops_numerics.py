"""Forward results, bit for bit against the float64 twin, on every grid, granularity and dtype."""

import pytest
import reference
import torch
from torchqat import ops

GRIDS = ("narrow", "full", "signed", "asymmetric")
BLOCKS = ((-1, -1), (1, -1), (1, 32), (1, 5), (4, 16))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_dynamic_equals_the_twin(grid, block, dtype, bits, device):
    x = (torch.randn(12, 70) * torch.logspace(-3, 2, 12)[:, None]).to(dtype)
    for scale_dtype in DTYPES:
        y, scale, zero_point = ops.fake_quantize_dynamic(x.to(device), block, bits, grid, scale_dtype)
        expected_scale, expected_zero = reference.qparams(x, block, bits, grid, scale_dtype)
        assert torch.equal(scale.cpu(), expected_scale)
        assert torch.equal(zero_point.cpu(), expected_zero)
        expected = reference.fake_quantize(x, expected_scale, expected_zero, block, *reference.quant_range(bits, grid))
        assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_dequantize_to_the_forward(grid, device):
    x = torch.randn(8, 96, device=device)
    scale, zero_point = ops.choose_qparams(x, (1, 32), 4, grid, "mse", torch.bfloat16)
    ends = reference.quant_range(4, grid)
    codes = ops.quantize(x, scale, zero_point, (1, 32), *ends)
    assert codes.min() >= ends[0] and codes.max() <= ends[1]
    for dtype in DTYPES:
        read = (codes.float() - zero_point.repeat_interleave(32, 1)).to(dtype) * scale.repeat_interleave(32, 1).to(
            dtype
        )
        assert torch.equal(ops.dequantize(codes, scale, zero_point, (1, 32), dtype), read)


def test_ties_go_to_even(device):
    k = torch.arange(-20, 20, device=device)
    x = (k + 0.5)[None] * 0.25
    y = ops.fake_quantize(x, torch.full((1, 1), 0.25, device=device), None, (1, -1), -128, 127)
    assert torch.equal(y, ((k + 0.5).round() * 0.25)[None])
    assert torch.equal(y / 0.25 % 2, torch.zeros_like(y))


def test_idempotent(device):
    x = torch.randn(16, 64, device=device)
    y, scale, zero_point = ops.fake_quantize_dynamic(x, (1, 32), 4, "full", torch.bfloat16)
    assert torch.equal(ops.fake_quantize(y, scale, zero_point, (1, 32), -8, 7), y)


def test_scaling_by_a_power_of_two_commutes(device):
    x = torch.randn(16, 64, device=device)
    for grid in GRIDS:
        y = ops.fake_quantize_dynamic(x, (1, 32), 4, grid, torch.bfloat16)[0]
        assert torch.equal(ops.fake_quantize_dynamic(x * 1024, (1, 32), 4, grid, torch.bfloat16)[0], y * 1024)


def test_narrow_is_odd(device):
    x = torch.randn(16, 64, device=device)
    y = ops.fake_quantize_dynamic(x, (1, 32), 4, "narrow")[0]
    assert torch.equal(ops.fake_quantize_dynamic(-x, (1, 32), 4, "narrow")[0], -y)


# SQNR in dB on N(0,1), from the literature's noise floors; 0.2 dB is their rounding and the sample's spread.
@pytest.mark.parametrize(
    ("group", "bits", "narrow", "full", "signed", "asymmetric", "mse", "asymmetric_mse"),
    [
        (32, 2, 3.6, 6.5, 8.8, 7.8, 8.6, 9.5),
        (32, 3, 12.9, 13.8, 15.2, 15.2, 15.0, 15.9),
        (32, 4, 20.2, 20.4, 21.3, 21.9, 21.3, 22.2),
        (128, 2, 2.3, 5.2, 7.5, 6.0, 8.4, 8.7),
        (128, 3, 11.3, 12.5, 13.7, 13.3, 14.2, 14.6),
        (128, 4, 18.6, 19.1, 19.7, 20.0, 20.0, 20.5),
        (128, 8, 43.8, 43.7, 43.9, 44.6, 43.9, 44.6),
        (4096, 4, 15.9, 16.5, 17.1, 17.0, 19.3, 19.3),
        (4096, 8, 41.1, 41.2, 41.2, 41.6, 41.3, 41.7),
    ],
)
def test_noise_floor(group, bits, narrow, full, signed, asymmetric, mse, asymmetric_mse, device):
    x = torch.randn(max(128, 1 << 20 >> group.bit_length() - 1), group * 4, device=device)

    def sqnr(grid, method):
        scale, zero_point = ops.choose_qparams(x, (1, group), bits, grid, method)
        y = ops.fake_quantize(x, scale, zero_point, (1, group), *reference.quant_range(bits, grid))
        return 10 * torch.log10(x.double().square().sum() / (x - y).double().square().sum()).item()

    for grid, expected in (("narrow", narrow), ("full", full), ("signed", signed), ("asymmetric", asymmetric)):
        assert sqnr(grid, "minmax") == pytest.approx(expected, abs=0.2)
    assert sqnr("full", "mse") == pytest.approx(mse, abs=0.2)
    assert sqnr("asymmetric", "mse") == pytest.approx(asymmetric_mse, abs=0.2)


def test_three_dimensional_inputs_are_tokens(device):
    x = torch.randn(2, 5, 16, device=device)
    y, scale, _ = ops.fake_quantize_dynamic(x, (1, -1), 8)
    assert scale.shape == (10, 1)
    assert torch.equal(y.reshape(10, 16), ops.fake_quantize_dynamic(x.reshape(10, 16), (1, -1), 8)[0])


def test_permuted_input(device):
    x = torch.randn(16, 8, device=device).t()
    assert torch.equal(
        ops.fake_quantize_dynamic(x, (1, -1), 4)[0], ops.fake_quantize_dynamic(x.contiguous(), (1, -1), 4)[0]
    )


def test_pack_agrees_with_compressed_tensors(device):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    for bits in (2, 4, 8):
        codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (5, 37), dtype=torch.int8)
        packed = ops.pack(codes.to(device), bits).cpu()
        assert torch.equal(packed, pack_to_int32(codes, bits))
        assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)
        assert torch.equal(ops.unpack(packed.to(device), bits, 37).cpu(), codes)
