"""Gradients against the float64 twin, ties, clipping and degenerate groups included."""

import math

import pytest
import reference
import torch
from sentences import matches
from torchqat import ops

GRIDS = ("narrow", "full", "signed", "asymmetric")
BLOCKS = ((-1, -1), (1, -1), (1, 32), (3, 16))


def _hard_input(dtype):
    """Ordinary values, ties, values far outside, an all-zero and a constant row, and what is not finite."""
    x = torch.randn(9, 64)
    x[1] = (torch.arange(64) - 32 + 0.5) * 0.25
    x[2] *= 100
    x[3] = 0
    x[4] = 0.7
    x[5, 3], x[5, 9], x[5, 20] = math.nan, math.inf, -math.inf
    x[6] = 1e-38
    return x.to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_straight_through(dtype, block, device):
    x = _hard_input(dtype)
    grad = torch.randn(x.shape).to(dtype)
    grid = torch.Size((1 if block[0] == -1 else 9 // block[0], 1 if block[1] == -1 else 64 // block[1]))
    scale, zero_point = torch.full(grid, 0.25), torch.randint(-2, 3, grid, dtype=torch.int8)
    leaf = x.to(device).requires_grad_()
    ops.fake_quantize(leaf, scale.to(device), zero_point.to(device), block, -8, 7).backward(grad.to(device))
    expected = reference.gradients(grad, x, scale, zero_point, block, -8, 7)[0]
    assert torch.equal(leaf.grad.cpu(), expected.to(dtype))


@pytest.mark.parametrize("grid", GRIDS[1:])
def test_dynamic_is_masked_by_its_own_scale(grid, device):
    x, grad = _hard_input(torch.float32), torch.randn(9, 64)
    leaf = x.to(device).requires_grad_()
    y, scale, zero_point = ops.fake_quantize_dynamic(leaf, (1, 32), 4, grid)
    y.backward(grad.to(device))
    expected = reference.gradients(grad, x, scale.cpu(), zero_point.cpu(), (1, 32), *reference.quant_range(4, grid))[0]
    assert torch.equal(leaf.grad.cpu(), expected.float())


def test_narrow_is_the_identity_and_saves_nothing(device):
    leaf = torch.randn(4, 64, device=device, requires_grad=True)
    y = ops.fake_quantize_dynamic(leaf, (1, 32), 4, "narrow", torch.bfloat16)[0]
    assert not [name for name in dir(y.grad_fn) if name.startswith("_saved_")]
    grad = torch.randn(4, 64, device=device)
    y.backward(grad)
    assert torch.equal(leaf.grad, grad)


@pytest.mark.parametrize("scale_dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("asymmetric", (False, True))
def test_learned_scale_and_zero_point(scale_dtype, block, asymmetric, device):
    x, grad = _hard_input(torch.float32), torch.randn(9, 64)
    grid = torch.Size((1 if block[0] == -1 else 9 // block[0], 1 if block[1] == -1 else 64 // block[1]))
    scale = torch.rand(grid) * 0.3 + 0.1
    zero_point = torch.randn(grid) * 2 if asymmetric else None
    leaves = [t.to(device).requires_grad_() if t is not None else None for t in (x, scale, zero_point)]
    ops.fake_quantize_learned(*leaves, block, -8, 7, scale_dtype, 0.125).backward(grad.to(device))
    used_scale = reference.stored(scale, scale_dtype)
    used_zero = zero_point.round().clamp(-8, 7) if asymmetric else torch.zeros(grid)
    of_x, of_scale, of_zero = reference.gradients(grad, x, used_scale, used_zero, block, -8, 7)
    assert torch.equal(leaves[0].grad.cpu(), of_x.float())
    # float32 sums of up to 576 terms against float64: relative to the sum of magnitudes.
    size = reference.sum_blocks(grad.abs().double() * 12, block, grid)
    assert ((leaves[1].grad.cpu().double() - of_scale * 0.125).abs() <= size * 1e-6).all()
    if asymmetric:
        assert ((leaves[2].grad.cpu().double() - of_zero * 0.125).abs() <= size * 1e-6).all()


def test_scale_gradient_is_the_derivative_of_the_surrogate(device):
    """With rounding error and mask frozen, numerics.md (5) is an ordinary derivative: finite differences show it."""
    x = torch.randn(1, 200, dtype=torch.float64) * 3
    scale = 0.31
    u0 = x / scale
    offset, clipped = u0.round() - u0, u0.round().clamp(-8, 7)
    inside = clipped == u0.round()

    def surrogate(s):
        return (torch.where(inside, x / s + offset, clipped) * s).sum().item()

    numeric = (surrogate(scale + 1e-6) - surrogate(scale - 1e-6)) / 2e-6
    leaf = torch.tensor([[scale]], device=device, requires_grad=True)
    ops.fake_quantize_learned(x.float().to(device), leaf, None, (-1, -1), -8, 7, torch.float32, 1.0).sum().backward()
    assert leaf.grad.item() == pytest.approx(numeric, rel=1e-3)


def test_same_bits_every_run(device):
    x, grad = torch.randn(64, 256, device=device), torch.randn(64, 256, device=device)

    def run():
        scale = torch.full((1, 1), 0.1, device=device, requires_grad=True)
        ops.fake_quantize_learned(x, scale, None, (-1, -1), -8, 7, torch.float32, 1.0).backward(grad)
        return scale.grad

    first = run()
    assert all(torch.equal(first, run()) for _ in range(5))


def _by_torch(x, scale, low, high):
    """Straight through in operators of torch's, whose mask is a constant."""
    level = torch.round(x.detach() * (1 / scale))
    return x * ((level >= low) & (level <= high)) + (level.clamp(low, high) * scale - x.detach() * (
        (level >= low) & (level <= high)))  # fmt: skip


def _gradient_penalty(rounded, x, mixing):
    """Gradients of the squared gradient of a loss beside the loss, as gradient penalties have it."""
    hidden = torch.tanh(x @ mixing)
    loss = rounded(hidden).pow(3).sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + slope.square().sum(), (x, mixing))


@pytest.mark.parametrize("quantizer", ("fixed int4 full 1x-1 float32", "learned int4 full 1x-1 float32"))
def test_gradient_penalty(quantizer, device):
    x = torch.randn(6, 16, device=device, requires_grad=True)
    mixing = torch.randn(16, 32, device=device, requires_grad=True)
    scale = torch.full((6, 1), 0.1, device=device)
    found = _gradient_penalty(lambda h: ops.fake_quantize(h, quantizer, scale), x, mixing)
    expected = _gradient_penalty(lambda h: _by_torch(h, scale, -8, 7), x, mixing)
    assert any((f != 0).any() for f in found)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-4)


def test_a_third_derivative(device):
    x = torch.linspace(-1, 1, 32, device=device).view(1, 32).requires_grad_()
    scale = torch.full((1, 1), 0.1, device=device)
    third = []
    for rounded in (lambda h: ops.fake_quantize(h, "fixed int4 full 1x-1 float32", scale),
                    lambda h: _by_torch(h, scale, -8, 7)):  # fmt: skip
        y = rounded(x.exp()).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        third.append(y.detach())
    torch.testing.assert_close(third[0], third[1])
    assert third[0].abs().sum() > 0


def test_the_gradient_of_a_learned_scale_has_none_of_its_own(device):
    leaf = torch.randn(2, 32, device=device, requires_grad=True)
    scale = torch.full((2, 1), 0.1, device=device, requires_grad=True)
    y = ops.fake_quantize(leaf * 1.0, "learned int4 full 1x-1 float32", scale)
    (grad,) = torch.autograd.grad(y.square().sum(), scale, create_graph=True)
    with pytest.raises(NotImplementedError, match=matches("ops.double-backward-of-scales")):
        grad.sum().backward()
