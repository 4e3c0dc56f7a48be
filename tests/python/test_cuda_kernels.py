"""The CUDA kernels give the CPU kernels' bits: on a GPU where there is one, else on a simulator of its threads.

The simulator (tests/cuda/simulator.h, which says what it can show) runs the device code of the .cu files as it stands, in
orders that TORCHQAT_SIMULATOR_SEED draws, with now all blocks, now fewer. A GPU shows the rest with the same tests.
"""

import os
from pathlib import Path

import pytest
import torch
from torchqat import ops  # noqa: F401  registers torch.ops.qat

BUILD = Path(os.environ.get("TORCHQAT_BUILD_DIR", Path(__file__).parents[2] / "build" / "native"))
SIMULATED = BUILD / "tests" / "libqat_cuda_simulated.so"
BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16

# Groups in a warp, groups wider than one, rows, short last segments, odd widths, blocks of several rows.
LAYOUTS = [
    (9, 256, (1, 32)),
    (5, 384, (1, 128)),
    (3, 512, (1, 16)),
    (4, 1024, (1, 512)),
    (6, 96, (1, -1)),
    (3, 4096, (1, -1)),
    (7, 333, (1, -1)),
    (4, 200, (1, 32)),
    (5, 77, (1, 7)),
    (12, 96, (4, 32)),
    (6, 130, (-1, -1)),
]
GRIDS = [(4, "narrow"), (4, "full"), (3, "signed"), (8, "asymmetric"), (2, "narrow")]


@pytest.fixture(scope="module")
def device_op(request):
    """Calls an operator's CUDA kernel with CPU tensors and brings its results back."""
    if torch.cuda.is_available():

        def on_gpu(name, *args, **options):
            moved = [a.cuda() if torch.is_tensor(a) else a for a in args]
            results = getattr(torch.ops.qat, name)(*moved, **options)
            if name.endswith("_"):
                args[0].copy_(moved[0])
            return results.cpu() if torch.is_tensor(results) else results and tuple(r.cpu() for r in results)

        return on_gpu
    if not SIMULATED.is_file():
        pytest.skip("neither a GPU nor the simulator, which make test-cpp builds")
    torch.ops.load_library(SIMULATED)
    return lambda name, *args, **options: getattr(torch.ops.qat_simulated, name)(*args, **options)


@pytest.fixture(autouse=True)
def _drawn_alike(device_op):
    """A test meets the same orders, whichever ran before."""
    if not torch.cuda.is_available():
        torch.ops.qat_simulated.reseed(int(os.environ.get("TORCHQAT_SIMULATOR_SEED", "0")))


def same(results, expected):
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == reference.dtype and result.shape == reference.shape
        assert torch.equal(result.nan_to_num(7.0), reference.nan_to_num(7.0))
        assert torch.equal(result.isnan(), reference.isnan())


def tensors(rows, cols, dtype, broken=True):
    x, grad = torch.randn(rows, cols).to(dtype), torch.randn(rows, cols).to(dtype)
    if broken:
        x[0, 3], x[-1, -1], x[0, 5] = float("nan"), float("inf"), -0.0
    return x, grad


def ends(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_forward(rows, cols, block, dtype, device_op):
    x, _ = tensors(rows, cols, dtype)
    for bits, grid in GRIDS:
        for out in {dtype, BF16 if dtype == FP32 else dtype}:
            args = (x, block, bits, grid, BF16)
            expected = torch.ops.qat.fake_quantize_dynamic(*args, dtype=out)
            same(device_op("fake_quantize_dynamic", *args, dtype=out), expected)
            scale, zero = expected[1] * 0.6, expected[2]
            for zero_point in (zero, None):
                args = (x, scale, zero_point, block, *ends(bits))
                same([device_op("fake_quantize", *args, dtype=out)], [torch.ops.qat.fake_quantize(*args, dtype=out)])
            learned_zero = zero.float() + 0.4
            for zero_point in (learned_zero, None):
                args = (x, scale, zero_point, block, *ends(bits), FP16, 0.5)
                reference = torch.ops.qat.fake_quantize_learned(*args, dtype=out)
                same([device_op("fake_quantize_learned", *args, dtype=out)], [reference])


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_backward(rows, cols, block, dtype, device_op):
    x, grad = tensors(rows, cols, dtype)
    for bits, grid in GRIDS:
        scale, zero = torch.ops.qat.choose_qparams(x, block, bits, grid, "minmax", BF16)
        scale = scale * 0.6
        args = (x, scale, zero, block, *ends(bits))
        expected = torch.ops.qat._fake_quantize_backward(grad, *args)
        same([device_op("_fake_quantize_backward", grad, *args)], [expected])
        inplace = grad.clone()
        device_op("_fake_quantize_backward_", inplace, *args)
        same([inplace], [expected])
        for zero_point in (zero.float() + 0.4, None):
            args = (x, scale, zero_point, block, *ends(bits), BF16, 0.3)
            expected = torch.ops.qat._fake_quantize_learned_backward(grad, *args)
            same(device_op("_fake_quantize_learned_backward", grad, *args), expected)
            inplace = grad.clone()
            sums = device_op("_fake_quantize_learned_backward_", inplace, *args)
            same([inplace, *sums], expected)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_codes(rows, cols, block, dtype, device_op):
    for broken in (False, True):
        x, _ = tensors(rows, cols, dtype, broken)
        for bits, grid in GRIDS:
            args = (x, None, None, block, bits, grid, BF16)
            codes, scale, zero = expected = torch.ops.qat.encode(*args)
            same(device_op("encode", *args), expected)
            given = (x, torch.ones_like(scale) * 0.3, zero, block, bits, grid, BF16)
            same(device_op("encode", *given), torch.ops.qat.encode(*given))
            args = (codes, scale, zero, block, bits, grid, cols, dtype)
            same([device_op("decode", *args)], [torch.ops.qat.decode(*args)])
            if broken:
                continue
            args = (x, scale, zero, block, *ends(bits))
            levels = torch.ops.qat.quantize(*args)
            same([device_op("quantize", *args)], [levels])
            args = (levels, scale, zero, block, dtype)
            same([device_op("dequantize", *args)], [torch.ops.qat.dequantize(*args)])


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_parameters(rows, cols, block, method, device_op):
    x, _ = tensors(rows, cols, FP32)
    for bits, grid in GRIDS[:3]:
        args = (x, block, bits, grid, method, BF16)
        scale, zero = expected = torch.ops.qat.choose_qparams(*args)
        same(device_op("choose_qparams", *args), expected)
        weighted = (*args, torch.rand(cols))
        same(device_op("choose_qparams", *weighted), torch.ops.qat.choose_qparams(*weighted))
        args = (scale * 0.7, zero.float() + 0.4, *ends(bits), FP16)
        same(device_op("round_qparams", *args), torch.ops.qat.round_qparams(*args))


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 5), (40, 128), (3, 130)])
@pytest.mark.parametrize("per_column", [False, True])
def test_feedback(rows, cols, per_column, device_op):
    shape = (rows, cols if per_column else 1)
    scale, zero = torch.rand(shape) * 0.3 + 0.1, torch.randint(-3, 4, shape, dtype=torch.int8)
    transfer = torch.randn(cols, cols) * 0.1
    args = (torch.randn(rows, cols), torch.randn(rows, cols) * 0.1, transfer, scale, zero, -8, 7)
    same(device_op("quantize_with_feedback", *args), torch.ops.qat.quantize_with_feedback(*args))


@pytest.mark.parametrize("grid", ["fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("block", [(1, -1), (-1, -1), (4, 32)])
def test_float8(grid, block, device_op):
    x, grad = tensors(12, 96, BF16)
    args = (x, block, 8, grid, FP32)
    y, scale, zero = expected = torch.ops.qat.fake_quantize_dynamic(*args)
    same(device_op("fake_quantize_dynamic", *args), expected)
    most = 448 if grid == "fp8_e4m3" else 57344
    args = (x, scale * 0.5, None, block, -most, most)
    same([device_op("fake_quantize", *args)], [torch.ops.qat.fake_quantize(*args)])
    expected = torch.ops.qat._fake_quantize_backward(grad, *args)
    same([device_op("_fake_quantize_backward", grad, *args)], [expected])
    inplace = grad.clone()
    device_op("_fake_quantize_backward_", inplace, *args)
    same([inplace], [expected])
