"""Kernels of a device beside those of the CPU: on a GPU where there is one, else on a simulator of its threads.

The simulator (tests/cuda/simulator.h, which says what it can show) runs the device code of the .cu files as it stands, in
orders that TORCHQAT_SIMULATOR_SEED draws, with now all blocks, now fewer.
"""

import os

import pytest
import torch
from build_folder import BUILD
from torchqat import ops  # noqa: F401  registers torch.ops.qat

SIMULATED = BUILD / "tests" / "libqat_cuda_simulated.so"
BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16


def _on_gpu(name, *args, **options):
    moved = [a.cuda() if torch.is_tensor(a) else a for a in args]
    results = getattr(torch.ops.qat, name)(*moved, **options)
    if name.endswith("_"):
        args[0].copy_(moved[0])
    return results.cpu() if torch.is_tensor(results) else results and tuple(r.cpu() for r in results)


def _simulated(name, *args, **options):
    return getattr(torch.ops.qat_simulated, name)(*args, **options)


def device_operator():
    """What calls an operator's CUDA kernel with CPU tensors and brings its results back; skips where there is none."""
    if torch.cuda.is_available():
        return _on_gpu
    if not SIMULATED.is_file():
        pytest.skip("neither a GPU nor the simulator, which make test-cpp builds")
    torch.ops.load_library(SIMULATED)
    return _simulated


def draw_alike():
    """A test meets the same tensors and orders, whichever ran before."""
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        torch.ops.qat_simulated.reseed(int(os.environ.get("TORCHQAT_SIMULATOR_SEED", "0")))


def listed(results):
    return [results] if torch.is_tensor(results) else list(results)


def same(results, expected):
    for result, reference in zip(listed(results), listed(expected), strict=True):
        assert result.dtype == reference.dtype and result.shape == reference.shape
        result, reference = (t.float() if t.dtype.itemsize == 1 else t for t in (result, reference))
        assert torch.equal(result.isnan(), reference.isnan())
        result, reference = (t.nan_to_num(7.0, posinf=8.0, neginf=9.0) for t in (result, reference))
        whole = {2: torch.int16, 4: torch.int32}[result.dtype.itemsize]
        assert torch.equal(result.contiguous().view(whole), reference.contiguous().view(whole))


def check(device_op, name, *args, **options):
    """The kernel on the device against that on the CPU, whose results it returns."""
    expected = getattr(torch.ops.qat, name)(*args, **options)
    same(device_op(name, *args, **options), expected)
    return expected


def check_inplace(device_op, expected, grad, *args):
    grad_x, *sums = expected
    inplace = grad.clone()
    same(device_op("_fake_quantize_backward_", inplace, *args), sums)
    same(inplace, grad_x)
