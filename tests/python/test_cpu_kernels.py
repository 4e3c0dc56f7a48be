"""The CPU kernels: the same bits for every set of instructions and any number of threads, on torch's threads."""

import os
import subprocess
import sys

import pytest
import torch
from sentences import said

# Prints the kernels in use and a digest of everything that the operators compute.
DIGEST = """
import hashlib, sys, torch
from torchqat import ops
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
digest = hashlib.sha256()
def add(*tensors):
    for t in tensors:
        digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for rows, cols, block in [(64, 2048, (1, 32)), (64, 2048, (1, 128)), (33, 1000, (1, 7)), (40, 3000, (1, -1)),
                              (64, 512, (16, 48)), (5, 333, (-1, -1)), (1, 70000, (1, 32))]:
        x = torch.randn(rows, cols).to(dtype)
        x[0, 3], x[-1, -1], x[0, 5] = float("nan"), float("inf"), -0.0
        g = torch.randn(rows, cols).to(dtype)
        for levels, code in [("int4 narrow", "bfloat16"), ("int4 full", "bfloat16"), ("int3 signed", "float16"),
                             ("int8 asymmetric", "bfloat16"), ("int2 narrow", "float32"), ("int4 offset", "float16"),
                             ("iq4_nl", "float16"), ("iq4_nl", "int6_signed*float16@-1x-1"),
                             ("fp4_e2m1", "e8m0_floor"), ("fp4_e2m1", "e4m3*float32@-1x-1"), ("fp6_e2m3", "e8m0_even"),
                             ("fp4_e2m1", "e4m3_four_over_six*float32@-1x-1"), ("int4 asymmetric", "e4m3*float32@-1x-1"),
                             ("fp6_e3m2", "e8m0_ceil"), ("fp8_e4m3", "float32"), ("fp8_e5m2", "bfloat16")]:
            shape = f"{block[0]}x{block[1]}"
            found, given, trained = (f"{mode} {levels} {shape} {code}" for mode in ("minmax", "fixed", "learned"))
            y, scale, zero = torch.ops.qat.fake_quantize(x, found)
            add(y.nan_to_num(7.0), scale, zero)
            smaller, point = scale * 0.6, None if levels.startswith(("fp", "iq")) else zero
            add(ops.fake_quantize(x, given, smaller, point).nan_to_num(7.0))
            add(ops.quantize(x, given, smaller, point))
            back = torch.ops.qat._fake_quantize_backward
            add(back(g, x, given, smaller, point, None)[0])
            add(*back(g, x, trained, smaller, None if point is None else zero.float() + 0.4, None))
            add(*back(g, x, trained, smaller, None, None))
            add(*ops.choose_qparams(x[:8, :256], found, "mse"))
            if levels.startswith(("fp", "iq")) or "offset" in levels:
                continue
            codes, kept_scale, kept_zero = ops.encode(x.nan_to_num(1.0, 1.0, 1.0), found)
            add(codes, kept_scale, kept_zero, ops.decode(codes, given, kept_scale, kept_zero, cols, dtype))
            if dtype == torch.float32:
                part = x[:, :200].nan_to_num(1.0, 1.0, 1.0)
                transfer = torch.randn(part.shape[1], part.shape[1]) * 0.1
                one = torch.full((rows, 1), 0.3), torch.ones(rows, 1, dtype=torch.int8)
                add(*ops.quantize_with_feedback(part, f"fixed {levels} 1x-1 float32", part, transfer, *one))
                add(ops.fake_quantize(x, found, dtype=torch.bfloat16).nan_to_num(7.0))
    logits = torch.randn(3, 4099).to(dtype)
    add(*torch.ops.qat.kl_divergence(logits, logits.flip(0), 0.7, None, torch.ones(())))
print(ops.cpu_capability(), digest.hexdigest())
"""


def run(code, *args, capability=""):
    environment = {**os.environ, "TORCHQAT_CPU_CAPABILITY": capability}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment)


def digest(capability, threads):
    name, value = run(DIGEST, str(threads), capability=capability).stdout.split()
    return name, value


@pytest.fixture(scope="module")
def reference():
    return digest("portable", 1)


def test_portable_kernels_can_be_asked_for(reference):
    assert reference[0] == "portable"


def skip_without(capability):
    flags = {"portable": "", "avx2": "avx2", "avx512": "avx512bw"}[capability]
    with open("/proc/cpuinfo") as file:
        if flags not in file.read():
            pytest.skip(f"this processor has no {capability}")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_every_variant_gives_the_same_bits(capability, threads, reference):
    skip_without(capability)
    name, value = digest(capability, threads)
    assert name == capability and value == reference[1]


# The sums of the packed product are those of a matrix product: near, but of the processor's own order. Prints the largest
# error in units of the bound, numerics.md (35), and a digest of the results.
PACKED = """
import hashlib, sys, torch
from torchqat import ops
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
worst, digest = 0.0, hashlib.sha256()
for rows, cols, group, bits in [(64, 64, 32, 4), (70, 96, 32, 4), (33, 100, 20, 4), (130, 64, 16, 8), (200, 256, 256, 8)]:
    top = 2 ** (bits - 1)
    codes = torch.randint(-top, top, (rows, cols), dtype=torch.int8)
    scale, zero = torch.rand(rows, cols // group) + 0.5, torch.randint(-top, top, (rows, cols // group), dtype=torch.int8)
    wide = lambda values: values.double().repeat_interleave(group, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch in (1, 2, 3, 5, 8, 70):
            x = torch.randn(batch, cols).to(dtype)
            y = ops.packed_linear(x, ops.pack_panels(codes, bits, group), torch.ops.qat.pack_panel_values(scale),
                                  torch.ops.qat.pack_panel_values(zero), None, bits, group, rows)
            exact = x.double() @ ((codes.double() - wide(zero)) * wide(scale)).T
            size = x.double().abs() @ ((codes.double().abs() + wide(zero).abs()) * wide(scale)).T
            last = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
            bound = size * (cols + 8) * 2.0**-24 + exact.abs() * last
            worst = max(worst, ((y.double() - exact).abs() / bound).max().item())
            digest.update(y.view(torch.uint8).numpy().tobytes())
print(worst, digest.hexdigest())
"""


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_the_packed_product_stays_within_its_bound_for_any_threads(capability):
    skip_without(capability)
    found = [run(PACKED, str(threads), capability=capability).stdout.split() for threads in (1, 2)]
    assert 0.0 < float(found[0][0]) <= 1.0
    assert found[0] == found[1]


def test_other_words_are_refused_in_a_sentence():
    result = run("from torchqat import ops; ops.cpu_capability()", capability="sse9")
    assert said(result.stderr, "ops.cpu-capability", asked="sse9")


def test_doctor_shows_the_kernels():
    code = "import sys; sys.argv = ['torchqat', 'doctor']; from torchqat.cli import main; main()"
    assert "portable kernels" in run(code, capability="portable").stdout


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_the_kernels_use_torchs_threads():
    """Without OpenMP at compile time, torch's loops run on one thread and say nothing."""
    code = """
import os, torch
from torchqat import ops
torch.set_num_threads(3)
x = torch.frombuffer(bytearray(4 << 22), dtype=torch.float32).view(2048, 2048)  # filled by no thread of torch
before = len(os.listdir("/proc/self/task"))
ops.fake_quantize_dynamic(x, (1, 32), 4)
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert int(run(code).stdout) == 2


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (1, 1), (2, 31), (1, 1 << 16)])
@pytest.mark.parametrize("block", [(1, 32), (1, 64), (1, 128), (1, -1), (-1, -1), (2, 8)])
def test_any_shape_is_covered_once(shape, block):
    """Tiles, tails and pieces: with the reference's plain loops over blocks."""
    from torchqat import ops

    x = torch.randn(shape)
    y, scale, _ = ops.fake_quantize_dynamic(x, block, 8, "narrow")
    height, width = (size if side == -1 else side for side, size in zip(block, shape, strict=True))
    for row in range(shape[0]):
        for col in range(0, shape[1], max(1, width)):
            part = x[row, col : col + width]
            s = scale[row // max(1, height), col // max(1, width)]
            assert torch.equal(y[row, col : col + width], torch.round(part * (1 / s)).clamp(-127, 127) * s + 0.0)
