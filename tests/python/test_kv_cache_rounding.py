"""The rounding of a cache of keys and values, against a twin in float64."""

import pytest
import torch
from sentences import matches
from torchqat import ops


def twin(x, granularity, group, bits, grid):
    """As docs/numerics.md (28) has it, block by block, in float64."""
    x = x.double()
    batch, heads, count, size = x.shape
    y = x.clone()
    if granularity == "channel":
        whole = count // group * group
        blocks = y[:, :, :whole].reshape(batch, heads, whole // group, group, size).transpose(3, 4)
    else:
        whole = count
        blocks = y.view(batch, heads, count, -1, group if granularity == "group" else size)
    if grid == "asymmetric":
        low = blocks.amin(-1, keepdim=True)
        step = ((blocks.amax(-1, keepdim=True) - low) / (2**bits - 1)).float().double()
        step = torch.where(step == 0, torch.ones_like(step), step)
        found = torch.round((blocks - low) / step) * step + low
    else:
        step = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        found = torch.round(blocks / step) * step
    if granularity == "channel":
        y[:, :, :whole] = found.transpose(3, 4).reshape(batch, heads, whole, size)
        return y
    return found.reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("grid", ["narrow", "asymmetric"])
@pytest.mark.parametrize(("granularity", "group"), [("token", 0), ("group", 8), ("channel", 4)])
def test_equals_the_twin(granularity, group, grid, bits, dtype, device):
    x = (torch.randn(2, 3, 11, 16) + torch.linspace(-2, 5, 16)).to(dtype)
    found = ops.fake_quantize_cache(x.to(device), None, granularity, group, bits, grid).cpu()
    expected = twin(x, granularity, group, bits, grid)
    # The offset goes off and on again: three roundings of the size of the block. Near the middle between two levels
    # float32 may take the other one.
    close = (found.double() - expected).abs() <= 3 * torch.finfo(dtype).eps * x.double().abs().max()
    assert close.float().mean() > 0.995
    if granularity == "channel":
        assert torch.equal(found[:, :, 8:], x[:, :, 8:])


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


def nearest_e2m1(x):
    """To the nearest of the 15 numbers, ties to the one whose code is even, in float64."""
    magnitude = x.abs().unsqueeze(-1)
    distance = (magnitude.clamp(max=6.0) - E2M1).abs()
    best = distance == distance.amin(-1, keepdim=True)
    even = best & (torch.arange(8) % 2 == 0)
    index = torch.where(even.any(-1), even.double().argmax(-1), best.double().argmax(-1))
    return torch.copysign(E2M1[index], x)


def float4_twin(x, code, outer):
    """In blocks of a head's channels; the scale as E4M3 under an outer one, or as a power of two by OCP's rule."""
    group = 16 if code == "e4m3" else 32
    blocks = x.double().reshape(*x.shape[:-1], -1, group)
    largest = blocks.abs().amax(-1, keepdim=True)
    if code == "e4m3":
        wanted = (largest.float() / 6 / outer).clamp(max=448)
        scale = wanted.to(torch.float8_e4m3fn).double() * outer
    else:
        scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    quotient = (blocks.float() * (1 / scale.float())).double()  # numerics.md (1)
    return (nearest_e2m1(quotient) * scale).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("code", "outer"), [("e4m3", 1.0), ("e4m3", 0.0625), ("e8m0_floor", None)])
def test_4_bit_floats_equal_the_twin(code, outer, dtype, device):
    """Bit for bit: outer scales are powers of two here, so that float64 and float32 agree."""
    torch.manual_seed(3)
    x = (torch.randn(2, 3, 11, 64) * torch.logspace(-1, 1, 11).view(11, 1)).to(dtype)
    x[0, 0, 0] = 0
    group = 16 if code == "e4m3" else 32
    scale = torch.tensor([outer], device=device) if outer not in (None, 1.0) else None
    found = ops.fake_quantize_cache(x.to(device), scale, "group", group, 4, "fp4_e2m1", 0, code).cpu()
    assert torch.equal(found, float4_twin(x, code, outer).to(dtype))
    kept = ops.fake_quantize_cache(x.to(device), scale, "group", group, 4, "fp4_e2m1", 2, code).cpu()
    assert torch.equal(kept[:, :, :2], x[:, :, :2]) and torch.equal(kept[:, :, 2:], found[:, :, 2:])


@pytest.mark.parametrize("grid", ["fp8_e4m3", "narrow"])
def test_given_scales_are_used(grid, device):
    x = torch.randn(2, 3, 5, 16, device=device) * 40
    one = torch.tensor([0.25], device=device)
    ends = (-448, 448) if grid == "fp8_e4m3" else (-127, 127)
    expected = ops.fake_quantize(x, one.view(1, 1), None, (-1, -1), *ends)
    assert torch.equal(ops.fake_quantize_cache(x, one, "tensor", grid=grid), expected)
    heads = torch.tensor([0.25, 0.5, 1.0], device=device)
    found = ops.fake_quantize_cache(x, heads, "head", grid=grid)
    for head in range(3):
        expected = ops.fake_quantize(x[:, head], heads[head].view(1, 1), None, (-1, -1), *ends)
        assert torch.equal(found[:, head], expected)


def test_the_first_tokens_stay_and_gradients_pass(device):
    x = torch.randn(1, 2, 9, 16, device=device, requires_grad=True)
    y = ops.fake_quantize_cache(x, None, "channel", 4, 4, "asymmetric", 3)
    assert torch.equal(y[:, :, :3], x[:, :, :3]) and torch.equal(y[:, :, 7:], x[:, :, 7:])
    assert not torch.equal(y[:, :, 3:7], x[:, :, 3:7])
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_a_block_of_one_value_comes_back(device):
    for grid in ("narrow", "asymmetric"):
        x = torch.full((1, 1, 4, 8), 0.7, device=device)
        torch.testing.assert_close(ops.fake_quantize_cache(x, None, "token", 0, 4, grid), x, rtol=1e-6, atol=0)
        zeros = torch.zeros_like(x)
        assert torch.equal(ops.fake_quantize_cache(zeros, None, "token", 0, 4, grid), zeros)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("grid", ["narrow", "asymmetric"])
def test_what_is_not_finite_is_nan_alone(bad, grid, device):
    x = torch.randn(1, 2, 4, 8, device=device)
    spoiled = x.clone()
    spoiled[0, 1, 2, 3] = bad
    spoiled[0, 0, 0] = bad  # a whole block
    found = ops.fake_quantize_cache(spoiled, None, "token", 0, 4, grid)
    expected = torch.zeros(1, 2, 4, 8, dtype=torch.bool, device=device)
    expected[0, 1, 2, 3] = expected[0, 0, 0] = True
    assert torch.equal(found.isnan(), expected)
    others = torch.cat([x[0, 1, 2, :3], x[0, 1, 2, 4:]])  # the rest of its block is rounded as if it were not there
    whole = ops.fake_quantize_cache(others.view(1, 1, 1, 7), None, "token", 0, 4, grid).flatten()
    assert torch.equal(torch.cat([found[0, 1, 2, :3], found[0, 1, 2, 4:]]), whole)


@pytest.mark.parametrize("group_size", [0, -3])
def test_pairs_want_a_group(group_size):
    with pytest.raises(ValueError, match=matches("ops.pairs-group", group_size=group_size)):
        torch.ops.qat.quantized_pairs(torch.ones(1), 4, 4, group_size, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), None, "token"), matches("ops.cache-shape")),
        (
            (torch.ones(1, 1, 1, 8), None, "row"),
            matches("ops.cache-granularity", granularity="row"),
        ),
        ((torch.ones(1, 1, 1, 8), None, "group", 3), matches("ops.cache-group", size=8, group_size=3)),
        ((torch.ones(1, 1, 1, 8), None, "tensor"), matches("ops.cache-scale")),
        ((torch.ones(1, 2, 1, 8), torch.ones(3), "head"), matches("ops.cache-scale")),
    ],
)
def test_bad_input_has_its_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.fake_quantize_cache(*arguments)


def test_it_compiles(device):
    x = torch.randn(1, 2, 8, 16, device=device)

    def run(x):
        return ops.fake_quantize_cache(x, None, "channel", 4, 4, "asymmetric")

    assert torch.equal(torch.compile(run, fullgraph=True)(x), run(x))
