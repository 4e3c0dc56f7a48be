"""Passes over the codes after GPTQ (numerics.md 16a, 39a), against a float64 twin and their promises."""

import pytest
import reference
import reference_ptq as twin
import torch
from sentences import matches
from test_gptq import problem, spec_of, statistics_of
from test_presets import spec_of as spec_of_preset
from torchqat import QuantSpec
from torchqat._library import Initialize, gptq
from torchqat.ops import quantize

SHAPES = [(4, 64, "full"), (3, 32, "narrow"), (2, 32, "asymmetric")]


def outputs_of(rows, seed=1):
    """A Hessian of outputs whose errors hang together, of very different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(rows, rows, generator=generator) * torch.rand(rows, generator=generator).pow(2)
    gradients = torch.randn(4 * rows, rows, generator=generator) @ mix
    return gradients.T @ gradients / len(gradients)


def damped(hessian, share):
    return hessian.double() + share * hessian.double().diagonal().mean() * torch.eye(len(hessian))


def cost(error, hessian, outputs=None):
    """tr(G ΔW H ΔWᵀ), with both as they are damped."""
    error, hessian = error.double(), damped(hessian, 0.01)
    of_rows = error if outputs is None else damped(outputs, 0.1) @ error
    return ((of_rows @ hessian) * error).sum().item()


@pytest.mark.parametrize(("bits", "group", "grid"), SHAPES)
def test_a_pass_is_its_float64_twin(bits, group, grid):
    weight, x = problem()
    hessian = statistics_of(x).hessian
    before, found = (gptq(weight, hessian, spec_of(bits, group, grid), bits, order="plain", sweeps=n) for n in (0, 1))
    assert torch.equal(found.scale, before.scale) and torch.equal(found.zero_point, before.zero_point)
    codes = twin.sweep(weight, before, damped(hessian, 0.01), group, reference.quant_range(bits, grid))
    # A code on the border may fall either way in float32, and takes what follows in its row with it.
    assert (found.codes == codes).all(1).float().mean() >= 0.85
    assert (before.codes != codes).float().mean() > 0.005


@pytest.mark.parametrize("outputs", (False, True))
@pytest.mark.parametrize(("bits", "group", "grid"), SHAPES)
def test_no_code_could_do_better_alone(bits, group, grid, outputs):
    weight, x = problem(rows=24, cols=64)
    hessian, of_rows = statistics_of(x).hessian, outputs_of(24) if outputs else None
    found = gptq(weight, hessian, spec_of(bits, group, grid), bits, sweeps=500, output_hessian=of_rows)
    h, g = damped(hessian, 0.01), damped(of_rows, 0.1) if outputs else torch.eye(24).double()
    pull = g @ (weight - found.weight).double() @ h
    curvature = g.diagonal()[:, None] * h.diagonal()
    step = found.scale.double().repeat_interleave(group, 1)
    lowest, highest = reference.quant_range(bits, grid)
    for move, allowed in ((1, found.codes < highest), (-1, found.codes > lowest)):
        change = step.square() * curvature - 2 * move * step * pull
        assert change[allowed].min() > -1e-5 * (step.square() * curvature).mean()


@pytest.mark.parametrize("outputs", (False, True))
@pytest.mark.parametrize("order", ("plain", "group", "column"))
@pytest.mark.parametrize(("bits", "least"), [(4, 0.98), (3, 0.97), (2, 0.96)])
def test_each_pass_lowers_the_error(bits, least, order, outputs):
    weight, x = problem()
    hessian, of_rows = statistics_of(x).hessian, outputs_of(48) if outputs else None
    arguments = {"order": order, "output_hessian": of_rows}
    found = [gptq(weight, hessian, spec_of(bits), bits, sweeps=n, **arguments) for n in range(5)]
    costs = [cost(weight - one.weight, hessian, of_rows) for one in found]
    assert costs == sorted(costs, reverse=True) and costs[-1] < least * costs[0]
    assert found[-1].loss == pytest.approx(cost(weight - found[-1].weight, hessian), rel=1e-4)


@pytest.mark.parametrize("preset", ("nvfp4", "mxfp4", "mxfp6_e2m3", "q4_k", "q2_k", "q6_k", "q5_1", "iq4_nl", "iq4_xs"))
def test_levels_of_every_kind(preset):
    weight, x = problem(cols=256)
    hessian, spec = statistics_of(x).hessian, spec_of_preset(preset)
    before, found = (gptq(weight, hessian, spec, spec.bits, sweeps=n) for n in (0, 4))
    assert torch.equal(found.scale, before.scale)
    assert cost(weight - found.weight, hessian) < 0.99 * cost(weight - before.weight, hessian)


@pytest.mark.parametrize("outputs", (False, True))
@pytest.mark.parametrize("shape", ({}, {"granularity": "block", "block": (16, 64)}, {"granularity": "channel"}))
def test_training_begins_at_a_weight_of_these_codes(shape, outputs):
    weight, x = problem()
    spec = QuantSpec(3, grid="full", **(shape or {"granularity": "group", "group_size": 64}))
    of_rows = outputs_of(48) if outputs else None
    found = gptq(weight, statistics_of(x).hessian, spec, 3, sweeps=4, output_hessian=of_rows)
    levels = spec.quant_range(3)
    assert torch.equal(quantize(found.target, found.scale, found.zero_point, spec.block, *levels), found.codes)
    assert (found.target - found.weight).abs().median() > 0.05 * found.scale.median()


def test_columns_that_hang_together_with_none_stay():
    weight, _ = problem()
    before, found = (gptq(weight, torch.eye(192), spec_of(4), 4, sweeps=n) for n in (0, 3))
    assert torch.equal(found.codes, before.codes)


def test_the_default_and_what_is_refused():
    assert Initialize("gptq").sweeps == 4
    weight, x = problem()
    with pytest.raises(ValueError, match=matches("ptq.gptq-damping")):
        gptq(weight, statistics_of(x).hessian, spec_of(4), 4, sweeps=-1)
