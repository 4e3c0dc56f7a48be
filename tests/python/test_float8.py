"""FP8 grids: every code, every midpoint, saturation, gradients, layers and their export."""

import math

import pytest
import torch
import torchqat
from sentences import matches
from small_net import Net, recipe_for
from torchqat import ops

TYPES = {"fp8_e4m3": (torch.float8_e4m3fn, 448.0), "fp8_e5m2": (torch.float8_e5m2, 57344.0)}
ONE = torch.ones(1, 1)


def rounded(x, grid, scale=ONE, block=(-1, -1)):
    return ops.fake_quantize(x, scale, None, block, -int(TYPES[grid][1]), int(TYPES[grid][1]))


def numbers(grid):
    """Every finite number of the type, ascending."""
    codes = torch.arange(256, dtype=torch.uint8).view(TYPES[grid][0]).double()
    return codes[codes.isfinite()].unique()


@pytest.mark.parametrize("grid", TYPES)
def test_every_number_of_the_type_is_a_level(grid, device):
    x = numbers(grid).float().to(device)
    assert torch.equal(rounded(x, grid, ONE.to(device)), x)


@pytest.mark.parametrize("grid", TYPES)
def test_midpoints_go_to_even_and_their_neighbours_to_the_nearest(grid, device):
    levels = numbers(grid)
    middle = ((levels[1:] + levels[:-1]) / 2).float()
    assert torch.equal(middle.double(), (levels[1:] + levels[:-1]) / 2)  # exact in float32
    below, above = torch.nextafter(middle, torch.tensor(-1e9)), torch.nextafter(middle, torch.tensor(1e9))
    one = ONE.to(device)
    assert torch.equal(rounded(below.to(device), grid, one).cpu().double(), levels[:-1])
    assert torch.equal(rounded(above.to(device), grid, one).cpu().double(), levels[1:])
    tied = rounded(middle.to(device), grid, one).cpu().to(TYPES[grid][0]).view(torch.uint8)
    assert (tied % 2 == 0).all()


@pytest.mark.parametrize("grid", TYPES)
def test_what_is_too_large_saturates_and_what_is_not_finite_shows(grid, device):
    most = TYPES[grid][1]
    x = torch.tensor([most * 1.01, -most * 100, 3e38, float("inf"), float("nan")], device=device)
    y = rounded(x, grid, ONE.to(device)).cpu()
    assert y[:3].tolist() == [most, -most, most] and y[3:].isnan().all()


@pytest.mark.parametrize("grid", TYPES)
@pytest.mark.parametrize("block", [(1, -1), (-1, -1), (16, 32), (1, 32), (7, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dynamic_scales_are_those_of_the_blocks_range(grid, block, dtype, device):
    x = torch.randn(32, 64, device=device).to(dtype)
    y, scale, zero = ops.fake_quantize_dynamic(x, block, 8, grid, torch.float32)
    height, width = (32 if block[0] == -1 else block[0]), (64 if block[1] == -1 else block[1])
    most = TYPES[grid][1]
    for row in range(scale.shape[0]):
        for col in range(scale.shape[1]):
            part = x[row * height : (row + 1) * height, col * width : (col + 1) * width].float()
            s = part.abs().max() / most
            assert scale[row, col] == s
            expected = ((part * (1 / s)).clamp(-most, most).to(TYPES[grid][0]).float() * s).to(dtype)
            assert torch.equal(y[row * height : (row + 1) * height, col * width : (col + 1) * width], expected)
    assert not zero.any()


@pytest.mark.parametrize(("grid", "mantissa"), [("fp8_e4m3", 3), ("fp8_e5m2", 2)])
def test_noise_floor(grid, mantissa):
    def sqnr(x):
        return 10 * torch.log10(x.square().sum() / (x - rounded(x, grid)).square().sum())

    # Of a mantissa spread evenly in the logarithm: mean square 3 / (2 ln 2), error step² / 12, step 2^-mantissa.
    expected = 10 * math.log10(3 / (2 * math.log(2)) * 12 * 4**mantissa)
    assert sqnr(torch.exp2(torch.rand(1, 400_000) * 4)) == pytest.approx(expected, abs=0.1)
    assert sqnr(torch.randn(1, 400_000)) == pytest.approx({3: 31.5, 2: 25.5}[mantissa], abs=0.2)


@pytest.mark.parametrize("grid", TYPES)
def test_gradients(grid, device):
    most = TYPES[grid][1]
    x = torch.tensor([0.5, most, most * 1.03, most * 1.2, float("nan")], device=device, requires_grad=True)
    rounded(x, grid, ONE.to(device)).backward(torch.ones(5, device=device))
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    x = torch.randn(4, 32, device=device, requires_grad=True)
    grad = torch.randn(4, 32, device=device)
    ops.fake_quantize_dynamic(x, (1, -1), 8, grid, torch.bfloat16)[0].backward(grad)
    assert torch.equal(x.grad, grad)


def test_codes_in_nibbles_are_of_integers():
    with pytest.raises(ValueError, match=matches("ops.no-whole-levels")):
        torch.ops.qat.encode(torch.randn(4, 32), "minmax fp8_e4m3 1x-1 bfloat16")
    with pytest.raises(ValueError, match=matches("ops.ends-of-a-grid", low=-448, high=449)):
        ops.fake_quantize(torch.randn(4, 32), ONE, None, (-1, -1), -448, 449)


WEIGHTS = (
    "{dtype: fp8_e4m3}",
    "{dtype: fp8_e5m2, granularity: tensor}",
    "{dtype: fp8_e4m3, block: [8, 32]}",
    "{dtype: int4, group_size: 32}",
)
INPUTS = ("{dtype: fp8_e4m3}", "{dtype: fp8_e4m3, granularity: tensor}", "{dtype: fp8_e5m2}", "{dtype: int8}")


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("cache", ["none", "codes", "weights"])
def test_layers(weight, input, cache):
    net = torchqat.prepare(Net(), recipe_for(weight, input), weight_cache=cache)
    torchqat.calibrate(net, [torch.randn(16, 64)])
    x = torch.randn(5, 64, requires_grad=True)
    layer = net.first
    y = layer(x)
    expected = torch.nn.functional.linear(layer.quantized_input(x), layer.quantized_weight(), layer.bias)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    assert layer.weight.grad.isfinite().all() and x.grad.isfinite().all()
    weights = torchqat.convert(net, torch.bfloat16)[0]
    assert torch.equal(weights.dequantize(), layer.quantized_weight().to(torch.bfloat16))


def test_codes_are_torchs_own():
    net = torchqat.prepare(Net(), recipe_for("{dtype: fp8_e4m3}"))
    weights = torchqat.convert(net, torch.bfloat16)[0]
    assert weights.codes.dtype == torch.float8_e4m3fn and weights.bits_per_weight == pytest.approx(8 + 16 / 64)


def test_scales_of_fp8_are_learned_as_well():
    net = torchqat.prepare(Net(), recipe_for("{dtype: fp8_e4m3, scale: learned}"))
    net(torch.randn(4, 64)).square().mean().backward()
    assert net.first.weight_scale.grad.any()
    with torch.no_grad():
        net.first.weight_scale.mul_(0.9)
    found = torchqat.convert(net, torch.bfloat16)[0]
    assert torch.equal(found.dequantize(torch.float32), net.first.quantized_weight())


DTYPES = (
    "int2, int3, int4, int5, int6, int7, int8, fp4_e2m1, fp6_e2m3, fp6_e3m2, fp8_e4m3, fp8_e5m2, nvfp4, mxfp4, mxfp6_e2m3, "
    "mxfp6_e3m2, mxfp8_e4m3, mxfp8_e5m2, q2_k, q3_k, q4_k, q5_k, q6_k, q4_0, q4_1, q5_0, q5_1, q8_0, q2_0, tq2_0, iq4_nl "
    "or iq4_xs"
)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("{dtype: fp8_e4m3, grid: full}", matches("recipe.grid-of-a-float", key="layers[0].weight.grid", value="full")),
        ("{dtype: fp8}", matches("recipe.unknown-word", key="layers[0].weight.dtype", known=DTYPES, value="fp8")),
    ],
)
def test_recipes_say_what_fp8_has_not(weight, message):
    with pytest.raises(torchqat.RecipeError, match=message):
        recipe_for(weight)
