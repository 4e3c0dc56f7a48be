"""AWQ, SmoothQuant, clipping and rotations: the C++ behind them, against float64 and their definitions."""

import pytest
import reference_ptq as twin
import torch
from sentences import matches
from test_gptq import problem, spec_of, statistics_of
from torchqat import ops
from torchqat._C import has_hadamard
from torchqat._library import awq_scale, clipped_qparams, output_error, preset, random_rotation, smoothing_scale


def rounded(weight, spec):
    return ops.fake_quantize_dynamic(weight, spec.block, spec.bits, spec.grid, torch.bfloat16)[0]


def test_output_error_is_measured_exactly():
    weight, x = problem()
    other = rounded(weight, spec_of(3))
    assert output_error(weight - other, statistics_of(x).hessian) == pytest.approx(
        twin.output_error(weight, other, x), rel=1e-5
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_awq_finds_the_best_of_its_candidates(bits):
    weight, x = problem()
    x[:, 7] *= 30.0  # one feature matters
    spec, statistics = spec_of(bits), statistics_of(x)
    found = awq_scale([(weight, spec, bits), (weight * 0.5, spec, bits)], statistics)

    def loss(scale):
        return sum(twin.output_error(w, rounded(w * scale, spec) / scale, x) for w in (weight, weight * 0.5))

    magnitude = x.abs().mean(0).clamp_min(1e-4)
    losses = []
    for point in range(20):
        scale = magnitude ** (point / 20)
        losses.append(loss(scale / (scale.max() * scale.min()).sqrt()))
    assert found.plain == pytest.approx(losses[0], rel=1e-4)
    assert found.loss == pytest.approx(min(losses), rel=1e-5)
    assert found.loss < found.plain
    assert loss(found.scale) == pytest.approx(found.loss, rel=1e-4)


def test_awq_judges_layers_under_the_outer_scale_that_they_share():
    """An engine multiplies a small matrix under the outer scale of a large one beside it: most of its scales vanish."""
    weight, x = problem()
    x[:, 7] *= 30.0
    spec, statistics = preset("nvfp4"), statistics_of(x)
    text = spec.quantizer(4, "minmax")
    weights = [weight * 1e5, weight, weight.flip(0)]

    def loss(scale, shares):
        total = 0.0
        needed = [ops.choose_outer_scales(w * scale, text)[0] for w in weights]
        for w, own, group in zip(weights, needed, shares, strict=True):
            together = [n for n, other in zip(needed, shares, strict=True) if other == group]
            outer = own if group == -1 else torch.stack(together).amax(0)
            total += twin.output_error(w, ops.fake_quantize(w * scale, text, outer_scale=outer) / scale, x)
        return total

    magnitude = x.abs().mean(0).clamp_min(1e-4)
    plain = {}
    for shares in ([0, 0, 0], [4, -1, 4], [-1, -1, -1]):
        found = awq_scale([(w, spec, 4) for w in weights], statistics, shares=shares)
        losses = [loss(s / (s.max() * s.min()).sqrt(), shares) for s in (magnitude ** (p / 20) for p in range(20))]
        assert found.plain == pytest.approx(losses[0], rel=1e-5)
        assert found.loss == pytest.approx(min(losses), rel=1e-5)
        plain[tuple(shares)] = found.plain
    assert plain[0, 0, 0] > plain[4, -1, 4] > plain[-1, -1, -1]


def test_awq_keeps_scales_of_one_where_they_are_best():
    weight = torch.full((4, 8), 0.5)
    found = awq_scale([(weight, spec_of(4, 8), 4)], statistics_of(torch.ones(10, 8)))
    assert torch.equal(found.scale, torch.ones(8)) and found.loss == found.plain


def test_awq_needs_statistics_of_the_weights_features():
    with pytest.raises(ValueError, match=matches("ptq.awq-features", features=8, found=6)):
        awq_scale([(torch.ones(4, 8), spec_of(4, 8), 4)], statistics_of(torch.ones(10, 6)))


def test_smoothing_is_the_papers_formula():
    x, first, second = torch.randn(50, 12) * torch.arange(1, 13), torch.randn(5, 12), torch.randn(7, 12) * 2
    x[:, 3] = 0.0
    found = smoothing_scale([first, second], x.abs().amax(0), 0.8)
    largest = torch.maximum(first.abs().amax(0), second.abs().amax(0)).double()
    expected = x.abs().amax(0).double() ** 0.8 / largest**0.2
    expected[3] = 1.0  # a feature that is never used stays as it is
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=matches("ptq.alpha", alpha="1.500000")):
        smoothing_scale([first], x.abs().amax(0), 1.5)


@pytest.mark.parametrize("grid", ["full", "signed", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4])
def test_clipping_takes_the_fraction_with_the_least_error_of_each_groups_output(bits, grid):
    weight, x = problem(rows=8, cols=96, tokens=400)
    spec = spec_of(bits, 32, grid)
    scale, zero = clipped_qparams(weight, statistics_of(x).hessian, spec, bits)
    for group in range(3):
        part, tokens = weight[:, group * 32 : group * 32 + 32], x[:, group * 32 : group * 32 + 32].double()
        errors = []
        for step in range(11):
            s, z = ops.choose_qparams(part * (1 - 0.05 * step), (1, 32), bits, grid, "minmax", torch.bfloat16)
            y = ops.fake_quantize(part, s, z, (1, 32), *spec.quant_range(bits))
            errors.append((tokens @ (part - y).double().T).square().sum(0) / len(x))
        place = slice(group, group + 1)
        own = ops.fake_quantize(part, scale[:, place], zero[:, place], (1, 32), *spec.quant_range(bits))
        found = (tokens @ (part - own).double().T).square().sum(0) / len(x)
        torch.testing.assert_close(found, torch.stack(errors).amin(0), rtol=1e-5, atol=1e-9)


def test_clipping_of_blocks_of_rows():
    weight, x = problem(rows=20, cols=96, tokens=400)
    from torchqat import QuantSpec

    spec = QuantSpec(4, granularity="block", block=(8, 32), grid="full")
    assert clipped_qparams(weight, statistics_of(x).hessian, spec, 4)[0].shape == (3, 3)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 32, 36, 64, 384, 576, 896])
def test_rotations_are_hadamard_matrices(size):
    assert has_hadamard(size)
    rotation = random_rotation(size, 3)
    assert rotation.dtype == torch.float64
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.abs(), torch.full_like(rotation, size**-0.5), rtol=0, atol=1e-12)
    assert torch.equal(rotation, random_rotation(size, 3))
    assert size < 12 or not torch.equal(rotation, random_rotation(size, 4))


@pytest.mark.parametrize("size", [3, 86])
def test_any_size_has_a_rotation(size):
    assert not has_hadamard(size)
    rotation = random_rotation(size, 0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_rotation_needs_a_size():
    with pytest.raises(ValueError, match=matches("ptq.rotation-size", size=0)):
        random_rotation(0, 0)
