"""Scales that are codes, alone and under outer ones, against float64 twins (reference.py, reference_ptq.py).

Searched, found by four-over-six, learned, and chosen together with codes by GPTQ and AWQ.
"""

import pytest
import reference
import reference_ptq as twin
import torch
from sentences import matches
from test_gptq import problem, statistics_of
from torchqat import ops
from torchqat._library import clipped_qparams, gptq, preset

CODED = ("nvfp4", "mxfp4", "q4_k", "q5_k", "q6_k")


def text_of(name, mode="minmax"):
    spec = preset(name)
    return spec.quantizer(spec.bits, mode)


def blocks_of(x, name):
    return x.reshape(-1, preset(name).block[1])


def weight_of(rows=32, cols=512, seed=0):
    """Rows of very different size, some with outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator) * torch.logspace(-2, 0, rows)[:, None]
    weight[3, ::50] *= 8
    return weight


def spread(outer, name, shape):
    """One outer scale per block."""
    spec = preset(name)
    height, width = spec.outer_block
    if height == -1:
        return outer.expand(shape[0], shape[1] // spec.block[1]).reshape(-1)
    return outer.repeat_interleave(width // spec.block[1], 1).reshape(-1)


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "q6_k"])
def test_the_search_finds_the_least_error_of_all_codes(name, weighted):
    x, text, spec = weight_of(), text_of(name), preset(name)
    importance = torch.rand(x.shape[1]) + 0.1 if weighted else None
    scale, _ = ops.choose_qparams(x, text, "mse", importance)
    outer = torch.ones(len(blocks_of(x, name)))
    if spec.has_outer_scale:
        outer = spread(ops.choose_outer_scales(x, text)[0], name, x.shape)
        assert torch.equal(ops.round_qparams(scale, text, None, ops.choose_outer_scales(x, text)[0])[0], scale)
    weights = 1.0 if importance is None else blocks_of(importance.expand_as(x), name)
    parts = blocks_of(x, name)
    least = reference.search(parts, outer, spec.scale_dtype, spec.grid, spec.bits, weights)
    values = reference.rounded(parts, scale.reshape(-1, 1), spec.grid, spec.bits)
    found = ((values - parts.double()).square() * weights).sum(1)
    # A fifth of the range is where the search ends; one block in a thousand would be cut off further.
    assert (found <= least * (1 + 1e-5)).float().mean() > 0.999
    by_range, _ = ops.choose_qparams(x, text)
    values = reference.rounded(parts, by_range.reshape(-1, 1), spec.grid, spec.bits)
    assert (found <= ((values - parts.double()).square() * weights).sum(1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["q4_k", "q5_k"])
def test_the_search_chooses_scales_and_offsets_together(name):
    """No worse than any scale code with the offset of the range shrunk alike, or the codes beside it."""
    x, text, spec = weight_of(8), text_of(name), preset(name)
    outer, outer_offset = (spread(of, name, x.shape)[:, None] for of in ops.choose_outer_scales(x, text))
    scale, offset = ops.choose_qparams(x, text, "mse")
    parts = blocks_of(x, name)

    def error(s, o):
        return (reference.rounded(parts, s, spec.grid, spec.bits, o) - parts.double()).square().sum(1)

    found = error(scale.reshape(-1, 1), offset.reshape(-1, 1))
    low = parts.amin(1, keepdim=True).clamp_max(0)
    real = (parts.amax(1, keepdim=True).clamp_min(0) * 0.5 - low * 0.5) / ((2**spec.bits - 1) * 0.5)
    for number in reference.codes_of("int6"):
        s = number * outer
        inside = ((s >= 0.25 * real) & (s <= real + 7 * outer)).squeeze(1)
        shrunk = torch.where(number == (real / outer).round().clamp(1, 63), 1.0, (s / real).clamp_max(1))
        code = (-(low * shrunk) / outer_offset).clamp_max(63).round()
        for by in (-1, 0, 1):
            other = error(s, -(code + by).clamp(0, 63) * outer_offset)
            assert ((found <= other * 1.0001) | ~inside).all()


# -- four-over-six -----------------------------------------------------------------------------------------------------

FOUR_OVER_SIX = "fp4_e2m1 1x16 e4m3_four_over_six*float32@-1x-1"


def test_four_over_six_is_its_float64_twin():
    for seed in range(20):
        x = weight_of(seed=seed)
        x[5, :16] = 0
        outer = ops.choose_outer_scales(x, f"minmax {FOUR_OVER_SIX}")[0]
        needed = x.abs().max().item() / 6 / 256
        assert needed <= outer.item() < 2 * needed
        expected, margin = reference.four_over_six(x.reshape(-1, 16), outer.item())
        scale, _ = ops.choose_qparams(x, f"minmax {FOUR_OVER_SIX}")
        sure = margin > 1e-6
        assert sure.float().mean() > 0.99
        assert torch.equal(scale.reshape(-1)[sure], expected[sure])
        shared = ops.fake_quantize(x, f"minmax {FOUR_OVER_SIX}")
        assert torch.equal(shared, ops.fake_quantize(x, f"fixed {FOUR_OVER_SIX}", scale))


def test_four_over_six_is_found_anew_in_each_forward_and_trained_through():
    x = weight_of().requires_grad_()
    y = ops.fake_quantize(x, f"minmax {FOUR_OVER_SIX}")
    y.sum().backward()
    scale, _ = ops.choose_qparams(x.detach(), f"minmax {FOUR_OVER_SIX}")
    u = x.detach() / scale.repeat_interleave(16, 1)
    assert torch.equal(x.grad, (u.abs() <= 7).float())  # what is rounded to 6, ties to even included
    plain = ops.fake_quantize(x.detach(), text_of("nvfp4"))
    assert (y - x).square().sum() < 0.95 * (plain - x).square().sum()


# -- learned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["fp4_e2m1 1x16 e4m3*float32@-1x-1", "fp4_e2m1 1x32 e8m0_even"])
def test_learned_scales_are_those_of_the_float64_twin(text):
    """(7), (7d) and (5): rounded to codes under the outer scale that the largest needs, straight through."""
    generator = torch.Generator().manual_seed(0)
    x, group = weight_of(), int(text.split("x")[1].split(" ")[0])
    scale = x.reshape(32, -1, group).abs().amax(2) / 6 * (torch.rand(32, 512 // group, generator=generator) + 0.6)
    scale, x = scale.requires_grad_(), x.requires_grad_()
    grad = torch.randn(x.shape, generator=generator)
    y = ops.fake_quantize(x, f"learned {text} 0.25", scale)
    y.backward(grad)
    wanted = scale.detach()
    if "e4m3" in text:
        outer = 2.0 ** (wanted.max().double() / 448).log2().ceil().float()
        stored = (wanted / outer).clamp(2.0**-9, 448).to(torch.float8_e4m3fn).float() * outer
    else:
        stored = wanted.to(torch.float8_e8m0fnu).float()
    parts, s = x.detach().reshape(-1, group), stored.reshape(-1, 1)
    expected = reference.rounded(parts, s, "fp4_e2m1", 4)
    assert torch.equal(y.detach().reshape(-1, group), expected.float())
    u = (parts * (1 / s)).double()
    inside = u.abs() <= 7  # rounded to 6 at most; beyond it the level stays at 6
    level = expected / s.double()
    slope = torch.where(inside, level - u, 6.0 * u.sign())
    g = grad.reshape(-1, group).double()
    torch.testing.assert_close(scale.grad.reshape(-1).double(), 0.25 * (g * slope).sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(x.grad.reshape(-1, group).double(), torch.where(inside, g, 0.0))


# -- chosen together with codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["minmax", "mse"])
@pytest.mark.parametrize("name", CODED)
def test_gptq_is_its_float64_twin(name, search):
    weight, x = problem(rows=32, cols=256)
    hessian, spec = statistics_of(x).hessian, preset(name)
    found = gptq(weight, hessian, spec, spec.bits, order="plain", scale_search=search, sweeps=0)
    codes, scale, zero = twin.gptq_under_outer(weight, hessian, text_of(name), search)
    # A code on the border may fall either way in float32, and takes what follows in its row with it.
    same = (found.codes.double() == codes).all(1)
    assert same.float().mean() >= 0.7
    assert torch.equal(found.scale[same], scale[same])
    if spec.has_offset:
        assert torch.equal(found.zero_point[same], zero[same])
    theirs = (codes * scale.repeat_interleave(spec.block[1], 1) + zero.repeat_interleave(spec.block[1], 1)).float()
    assert twin.objective(weight - found.weight, hessian) == pytest.approx(
        twin.objective(weight - theirs, hessian), rel=0.03
    )


@pytest.mark.parametrize("order", ["plain", "group", "column"])
@pytest.mark.parametrize("name", (*CODED, "mxfp6_e3m2"))
def test_gptq_chooses_what_a_checkpoint_stores(name, order):
    weight, x = problem(rows=32, cols=512)
    hessian, spec, text = statistics_of(x).hessian, preset(name), text_of(name)
    found = gptq(weight, hessian, spec, spec.bits, order=order)
    offset = found.zero_point if spec.has_offset else None
    if spec.has_outer_scale:  # codes under the outer scales of the whole weight as it was
        outer, outer_offset = ops.choose_outer_scales(weight, text)
        assert torch.equal(ops.round_qparams(found.scale, text, None, outer)[0], found.scale)
        if offset is not None:
            inner = offset / outer_offset.repeat_interleave(8, 1)
            torch.testing.assert_close(inner, inner.round(), rtol=0, atol=1e-4)
    fixed = text_of(name, "fixed")
    assert torch.equal(ops.fake_quantize(found.weight, fixed, found.scale, offset), found.weight)
    assert torch.equal(ops.quantize(found.target, fixed, found.scale, offset).float(), found.codes.float())
    nearest = ops.fake_quantize(weight, text)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    assert found.loss == pytest.approx(twin.objective(weight - found.weight, damped), rel=1e-4)
    assert twin.objective(weight - found.weight, hessian) < 0.7 * twin.objective(weight - nearest, hessian)


def test_gptq_takes_an_outer_scale_that_layers_share():
    weight, x = problem(rows=16, cols=128)
    spec, text = preset("nvfp4"), text_of("nvfp4")
    outer = ops.choose_outer_scales(weight, text)[0] * 8
    found = gptq(weight, statistics_of(x).hessian, spec, 4, outer_scale=outer)
    assert torch.equal(ops.round_qparams(found.scale, text, None, outer)[0], found.scale)
    assert not torch.equal(found.scale, gptq(weight, statistics_of(x).hessian, spec, 4).scale)


@pytest.mark.parametrize("name", CODED)
def test_clipping_takes_the_fraction_with_the_least_error_under_the_outer_scales(name):
    weight, x = problem(rows=8, cols=256, tokens=600)
    spec, text, fixed = preset(name), text_of(name), text_of(name, "fixed")
    hessian = statistics_of(x).hessian
    outer = ops.choose_outer_scales(weight, text) if spec.has_outer_scale else (None, None)
    scale, zero = clipped_qparams(weight, hessian, spec, spec.bits)

    def errors(s, z):
        y = ops.fake_quantize(weight, fixed, s, z if spec.has_offset else None)
        parts = (weight - y).reshape(8, -1, spec.block[1]).double()
        own = torch.stack([h for h in _blocks_on_diagonal(hessian.double(), spec.block[1])])
        return torch.einsum("rgi,gij,rgj->rg", parts, own, parts)

    all_errors = [errors(*ops.choose_qparams(weight * (1 - 0.05 * i), text, "minmax", None, *outer)) for i in range(11)]
    torch.testing.assert_close(errors(scale, zero), torch.stack(all_errors).amin(0), rtol=1e-5, atol=1e-9)


def _blocks_on_diagonal(matrix, size):
    return [matrix[i : i + size, i : i + size] for i in range(0, len(matrix), size)]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_four_over_six_takes_e2m1_under_an_outer_scale():
    with pytest.raises(ValueError, match=matches("ops.four-over-six")):
        ops.fake_quantize(torch.ones(1, 32), "minmax fp4_e2m1 1x16 e4m3_four_over_six")
