"""The CUDA kernels give the CPU kernels' bits: on a GPU where there is one, else on a simulator of its threads.

A GPU shows with the same tests what the simulator cannot (device_kernels.py).
"""

import pytest
import torch
from device_kernels import BF16, FP16, FP32, check, check_inplace, device_operator, draw_alike

# Groups in a warp, groups wider than one, rows by a warp and by a thread block, short last segments, odd widths, blocks of
# several rows in vectors and not, long segments in pieces.
LAYOUTS = [
    (9, 256, "1x32"),
    (5, 384, "1x128"),
    (3, 512, "1x16"),
    (4, 1024, "1x512"),
    (6, 96, "1x-1"),
    (3, 4096, "1x-1"),
    (7, 333, "1x-1"),
    (4, 200, "1x32"),
    (5, 77, "1x7"),
    (12, 96, "4x16"),
    (9, 80, "4x32"),
    (130, 144, "128x128"),
    (6, 130, "-1x-1"),
    (5, 2560, "-1x-1"),
    (2, 4000, "1x2504"),
    (1, 66048, "1x-1"),
]
GRIDS = [
    "int4 narrow",
    "int4 full",
    "int3 signed",
    "int8 asymmetric",
    "int2 narrow",
    "int5 offset",
    "iq4_nl",
    "fp4_e2m1",
    "fp6_e2m3",
    "fp6_e3m2",
    "fp8_e4m3",
    "fp8_e5m2",
]
CODES = ["float32", "bfloat16", "float16", "e8m0_floor", "e8m0_even", "e8m0_ceil"]
# Scales and offsets that are multiples of outer ones.
NESTED = [
    (6, 96, "fp4_e2m1 1x16 e4m3*float32@-1x-1"),
    (5, 512, "int4 offset 1x32 int6*float16@1x256"),
    (8, 64, "int6 narrow 1x16 int8*bfloat16@4x32"),
    (5, 512, "int6 signed 1x16 int8*float16@1x256"),
    (5, 512, "iq4_nl 1x32 int6_signed*float16@1x256"),
    (6, 96, "fp4_e2m1 1x16 e4m3_four_over_six*float32@-1x-1"),
    (8, 96, "fp4_e2m1 4x16 e4m3_four_over_six*float32@-1x-1"),
    (4, 77, "fp4_e2m1 1x16 e4m3_four_over_six*float16@1x32"),
    (6, 96, "int4 asymmetric 1x32 e4m3*float32@-1x-1"),
]


@pytest.fixture(scope="module")
def device_op():
    return device_operator()


@pytest.fixture(autouse=True)
def _drawn_alike(device_op):
    draw_alike()


def tensors(rows, cols, dtype, broken=True):
    x, grad = torch.randn(rows, cols).to(dtype), torch.randn(rows, cols).to(dtype)
    if broken:
        x[0, 3], x[-1, -1], x[0, 5], x[-1, 2] = float("nan"), float("inf"), -0.0, float("-inf")
    return x, grad


def shifts(grid):
    return "asymmetric" in grid or "offset" in grid


def codes_of(grid):
    """What scales of a grid may be stored in."""
    return CODES if grid.startswith("fp") or "narrow" in grid else CODES[:3]


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_forward(rows, cols, block, dtype, device_op):
    x, _ = tensors(rows, cols, dtype)
    for at, grid in enumerate(GRIDS):
        out = dtype if dtype != FP32 else [FP32, BF16, FP16][at % 3]
        code = codes_of(grid)[at % len(codes_of(grid))]
        _, scale, zero = check(device_op, "fake_quantize", x, f"minmax {grid} {block} {code}", dtype=out)
        for zero_point in (zero, None) if shifts(grid) else (None,):
            args = (x, f"fixed {grid} {block} {code}", scale * 0.6, zero_point)
            check(device_op, "fake_quantize", *args, dtype=out)
            learned = None if zero_point is None else zero_point.float() + 0.4
            args = (x, f"learned {grid} {block} {code} 0.5", scale * 0.6, learned)
            check(device_op, "fake_quantize", *args, dtype=out)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", ["1x32", "1x-1", "4x32"])
def test_scale_codes(grid, block, device_op):
    x, grad = tensors(8, 128, BF16)
    x *= torch.tensor([1e-30, 1e-6, 1e-3, 1, 10, 1e4, 1e30, 0])[:, None]
    for code in codes_of(grid):
        text = f"minmax {grid} {block} {code}"
        _, scale, zero = check(device_op, "fake_quantize", x, text)
        for found in ((None, None), (scale, zero if shifts(grid) else None)):
            check(device_op, "_fake_quantize_backward", grad, x, text, *found, None)
        check(device_op, "round_qparams", scale * 0.7, text, zero.float() + 0.4 if shifts(grid) else None)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_backward(rows, cols, block, dtype, device_op):
    x, grad = tensors(rows, cols, dtype)
    for grid in GRIDS:
        scale, zero = torch.ops.qat.choose_qparams(x, f"minmax {grid} {block} bfloat16", "minmax")
        for zero_point in (zero, None) if shifts(grid) else (None,):
            args = (x, f"fixed {grid} {block} bfloat16", scale * 0.6, zero_point, None)
            check_inplace(device_op, check(device_op, "_fake_quantize_backward", grad, *args), grad, *args)
            learned = None if zero_point is None else zero_point.float() + 0.4
            args = (x, f"learned {grid} {block} bfloat16 0.3", scale * 0.6, learned, None)
            check_inplace(device_op, check(device_op, "_fake_quantize_backward", grad, *args), grad, *args)


@pytest.mark.parametrize(
    ("rows", "cols", "block", "grid"),
    [
        (2500, 24, "-1x-1", "int4 narrow"),
        (2500, 8, "-1x-1", "int4 asymmetric"),
        (2100, 40, "1030x20", "int4 offset"),
        (1100, 8, "-1x-1", "fp8_e4m3"),
        (33000, 1, "-1x1", "int4 narrow"),
    ],
)
def test_sums_over_many_rows(rows, cols, block, grid, device_op):
    """Chunks of rows, and at last more of them than a warp has threads."""
    x, grad = torch.randn(rows, cols), torch.randn(rows, cols)
    text = f"learned {grid} {block} float32 0.3"
    scale, zero = torch.ops.qat.choose_qparams(x, text, "minmax")
    args = (x, text, scale * 0.6, zero.float() + 0.4 if shifts(grid) else None, None)
    check(device_op, "_fake_quantize_backward", grad, *args)


@pytest.mark.parametrize(("rows", "cols", "text"), NESTED)
def test_outer_scales(rows, cols, text, device_op):
    x, grad = tensors(rows, cols, FP32)
    _, scale, zero = check(device_op, "fake_quantize", x, f"minmax {text}")
    given = (scale, zero if shifts(text) else None, None)
    check(device_op, "_fake_quantize_backward", grad, x, f"minmax {text}", *given)
    for method in ("minmax", "mse"):
        found, point = check(device_op, "choose_qparams", x, f"minmax {text}", method)
        outers = check(device_op, "choose_outer_scales", x, f"minmax {text}", method)
        given = (outers[0] * 0.7, outers[1] * 1.3 if "offset" in text else None)
        check(device_op, "choose_qparams", x, f"minmax {text}", method, torch.rand(cols), *given)
    assert torch.equal(scale, torch.ops.qat.choose_qparams(x, f"minmax {text}", "minmax")[0])
    learned = (scale * 0.7, zero * 1.1 if shifts(text) else None)
    check(device_op, "round_qparams", learned[0], f"learned {text}", learned[1])
    check(device_op, "fake_quantize", x, f"learned {text}", *learned)
    check(device_op, "_fake_quantize_backward", grad, x, f"learned {text}", *learned, None)
    outer = torch.full((1, 1), 0.01)
    if "-1x-1" in text:
        check(device_op, "fake_quantize", x, f"minmax {text}", None, None, outer)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_codes(rows, cols, block, dtype, device_op):
    for broken in (False, True):
        x, _ = tensors(rows, cols, dtype, broken)
        for grid in GRIDS:
            text = f"minmax {grid} {block} bfloat16"
            scale, zero = torch.ops.qat.choose_qparams(x, text, "minmax")
            zero_point = zero if shifts(grid) else None
            codes = check(device_op, "quantize", x, text, scale, zero_point)
            sides = [int(side) for side in block.rsplit("x", 1)]
            check(device_op, "dequantize", codes, scale, zero_point, sides, dtype)
            if grid.startswith(("fp", "iq")) or "offset" in grid:
                continue
            codes, scale, zero = check(device_op, "encode", x, text, None, None, None)
            check(device_op, "decode", codes, text, scale, zero, cols, dtype)
            given = f"learned {grid} {block} bfloat16"
            learned_zero = zero.float() + 0.4 if shifts(grid) else None
            check(device_op, "encode", x, given, torch.ones_like(scale) * 0.3, learned_zero, None)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("rows", "cols", "block"), LAYOUTS)
def test_minmax(rows, cols, block, dtype, device_op):
    x, _ = tensors(rows, cols, dtype)
    for at, grid in enumerate(GRIDS):
        code = codes_of(grid)[at % len(codes_of(grid))]
        check(device_op, "choose_qparams", x, f"minmax {grid} {block} {code}", "minmax")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("rows", "cols", "block"),
    [(3, 64, "1x32"), (2, 96, "1x16"), (3, 77, "1x-1"), (5, 48, "4x16"), (6, 40, "-1x-1")],
)
def test_search(rows, cols, block, grid, device_op):
    x, _ = tensors(rows, cols, FP32)
    text = f"minmax {grid} {block} bfloat16"
    check(device_op, "choose_qparams", x, text, "mse")
    check(device_op, "choose_qparams", x, text, "mse", torch.rand(cols))


@pytest.mark.parametrize("code", CODES[3:] + ["e4m3", "int6", "int8"])
@pytest.mark.parametrize("grid", ["int4 narrow", "fp4_e2m1", "fp6_e3m2", "fp8_e4m3"])
def test_search_over_codes(grid, code, device_op):
    x, _ = tensors(6, 96, FP32)
    x *= torch.tensor([1e-30, 1e-4, 1, 10, 1e4, 0])[:, None]
    for block in ("1x32", "3x16"):
        check(device_op, "choose_qparams", x, f"minmax {grid} {block} {code}", "mse", torch.rand(96))


def test_search_over_many_rows(device_op):
    x, _ = tensors(1030, 6, FP32)
    check(device_op, "choose_qparams", x, "minmax int2 asymmetric -1x-1 bfloat16", "mse")


@pytest.mark.parametrize("grid", ["int4 narrow", "int4 asymmetric", "int4 offset", "fp4_e2m1", "fp8_e5m2"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 5), (40, 128), (3, 130), (2, 300)])
@pytest.mark.parametrize("per_column", [False, True])
def test_feedback(rows, cols, per_column, grid, device_op):
    shape = (rows, cols if per_column else 1)
    scale, zero = torch.rand(shape) * 0.3 + 0.1, torch.randint(-3, 4, shape, dtype=torch.int8)
    if "offset" in grid:
        zero = torch.rand(shape) - 1
    transfer = torch.randn(cols, cols) * 0.1
    args = (torch.randn(rows, cols), f"fixed {grid} 1x-1 float32", torch.randn(rows, cols) * 0.1, transfer, scale)
    check(device_op, "quantize_with_feedback", *args, zero if shifts(grid) else None)


@pytest.mark.parametrize("choices", [1, 40, 1024, 9001])
@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, BF16), (FP16, FP32), (FP32, BF16)])
def test_kl_divergence(choices, dtypes, device_op):
    """Tokens by a thread block each, of fewer pieces than it has warps and of more."""
    student, teacher = (torch.randn(5, choices).mul(3).to(dtype) for dtype in dtypes)
    counted, share = torch.tensor([True, False, True, True, True]), torch.tensor(0.3)
    student[2, 0] = float("nan")
    teacher[4, choices // 2] = float("-inf")
    for found in ((student, teacher), (student, teacher, 2.0, counted, share)):
        check(device_op, "kl_divergence", *found)


@pytest.mark.parametrize("shape", [(0, 32), (4, 0)])
def test_nothing(shape, device_op):
    """No kernel is launched in no blocks."""
    x = torch.empty(shape)
    for grid in ("int4 narrow", "int8 asymmetric", "fp8_e4m3"):
        for block in ("1x32", "-1x-1"):
            text = f"minmax {grid} {block} bfloat16"
            for method in ("minmax", "mse"):
                scale, zero = check(device_op, "choose_qparams", x, text, method)
            check(device_op, "fake_quantize", x, text)
            zero_point = zero if shifts(grid) else None
            check(device_op, "_fake_quantize_backward", x, x, text.replace("minmax", "fixed"), scale, zero_point, None)
            learned = (
                text.replace("minmax", "learned"),
                scale,
                None if zero_point is None else zero_point.float(),
                None,
            )
            check(device_op, "_fake_quantize_backward", x, x, *learned)
            check(device_op, "quantize", x, text, scale, zero_point)
