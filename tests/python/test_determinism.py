"""The same seed gives the same bits: run to run, and however many threads there are."""

import re

import pytest
import torch
import torchqat
from digests import digests
from forked import Program
from launcher import anew

RECIPE = """version: 1
data: {calibration: {samples: 8, sequence_length: 64}, evaluation: {samples: 4, sequence_length: 64}}
layers:
  - match: "model.layers.*"
    weight: {dtype: int3, group_size: 32, grid: full, scale: learned}
    INPUT
initialize: {method: METHOD}
train: {steps: 8, batch_size: 4, sequence_length: 64, validate_every: 4, checkpoint_every: 4, learning_rate: 1.0e-3}
export: [FORMAT, safetensors]
"""


@pytest.fixture
def run(tmp_path, model_folder, data_folder):
    """A run on some threads; returns digests of all that is left, and what was said."""

    def run(name, threads, forked=True):
        command = ["-m", "torchqat", "run", tmp_path / "recipe.yaml", "--model", model_folder, "--data", data_folder]
        command, variables = [*command, "--output", tmp_path / name], {"OMP_NUM_THREADS": str(threads)}
        process = Program(command, tmp_path, name, **variables) if forked else anew(command, **variables)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return digests(tmp_path / name), said

    return run


@pytest.mark.parametrize(
    ("method", "input", "format"),
    [
        ("gptq", "", "compressed-tensors"),
        ("awq", "", "gptq"),
        ("smoothquant+gptq", "input: {dtype: int8}", "safetensors"),
    ],
)
def test_runs_are_the_same_bits(method, input, format, tmp_path, run):
    text = RECIPE.replace("METHOD", method).replace("INPUT", input).replace("FORMAT, safetensors", format)
    text = text.replace("int3", "int4") if format == "compressed-tensors" else text
    text = text.replace("scale: learned}", "scale: learned, scale_dtype: float16}") if format == "gptq" else text
    (tmp_path / "recipe.yaml").write_text(text)
    first, said = run("first", 1)
    again, said_again = run("again", 1, forked=False)
    threaded, said_threaded = run("threaded", 2)
    assert first == again
    assert first == threaded, [name for name in first if first[name] != threaded[name]]
    hashes = [re.findall(r"sha256 ([0-9a-f]{64})", text) for text in (said, said_again, said_threaded)]
    assert hashes[0] and hashes[0] == hashes[1] == hashes[2]


@pytest.mark.parametrize("grid", ["narrow", "full", "signed", "asymmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_are_the_same_bits_on_any_number_of_threads(grid, dtype):
    torch.manual_seed(0)
    x, g = torch.randn(512, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
    before = torch.get_num_threads()

    def results(threads):
        torch.set_num_threads(threads)
        weight = x.clone().requires_grad_(True)
        scale, zero = torchqat.ops.choose_qparams(x, (1, 64), 4, grid, "mse", torch.float16)
        learned = scale.clone().requires_grad_(True)
        zeros = zero.float().requires_grad_(True) if grid == "asymmetric" else None
        ends = (-7, 7) if grid == "narrow" else (-8, 7)
        y = torchqat.ops.fake_quantize_learned(weight, learned, zeros, (1, 64), *ends, torch.float16, 0.1)
        (y * g).sum().backward()
        codes = torchqat.ops.quantize(x, scale, zero, (1, 64), *ends)
        return [scale, zero, y.detach(), weight.grad, learned.grad, codes, torchqat.ops.pack(codes, 4)]

    try:
        one, two, three = results(1), results(2), results(3)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(one, two, three, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("block", [(-1, -1), (1, -1), (-1, 1), (100, 100)])
def test_scales_that_train_alone_get_the_same_gradients_on_any_number_of_threads(block):
    """A tensor's only scale has its terms summed by all of them; ATen's own sum depends on how many there are."""
    torch.manual_seed(0)
    codes, upstream = torch.randint(-8, 8, (1024, 1000), dtype=torch.int8), torch.randn(1024, 1000)
    sides = [size if side == -1 else side for size, side in zip(codes.shape, block, strict=True)]
    rows, cols = [torch.arange(size) // side for size, side in zip(codes.shape, sides, strict=True)]
    grid = int(rows[-1]) + 1, int(cols[-1]) + 1
    before = torch.get_num_threads()

    def gradient(threads):
        torch.set_num_threads(threads)
        scale = torch.ones(grid, requires_grad=True)
        (torchqat.ops.dequantize(codes, scale, None, block, torch.float32) * upstream).sum().backward()
        return scale.grad

    try:
        one, two, three = gradient(1), gradient(2), gradient(3)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two) and torch.equal(one, three)
    sums = torch.zeros(grid, dtype=torch.float64)
    sums.index_put_((rows[:, None], cols), (codes * upstream).double(), accumulate=True)
    assert torch.allclose(one.double(), sums, rtol=1e-5, atol=1e-2)
