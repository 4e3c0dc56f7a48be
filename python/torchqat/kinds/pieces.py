"""Logits over a large vocabulary, some tokens at a time: no float32 copy of all of them is ever there."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Piece = tuple[slice, slice]

# Elements of a piece: enough to keep a GPU busy, few enough for a processor's cache.
_ON_GPU, _ELSEWHERE = 1 << 24, 1 << 20


def pieces(logits: Tensor) -> Iterator[Piece]:
    """Rows and positions of parts of ``logits`` ``[rows, positions, choices]``, in order; one where they are few."""
    rows, positions, choices = logits.shape
    most = max(1, (_ON_GPU if logits.is_cuda else _ELSEWHERE) // max(1, choices))
    if positions <= most:
        step = max(1, most // max(1, positions))
        yield from ((slice(row, row + step), slice(None)) for row in range(0, rows, step))
        return
    for row in range(rows):
        yield from ((slice(row, row + 1), slice(at, at + most)) for at in range(0, positions, most))


def mean_over(
    logits: Tensor, of_piece: Callable[[Tensor, Piece], Tensor], count: Tensor | int, factor: float = 1.0
) -> Tensor:
    """The sum of ``of_piece(logits[piece], piece)`` over all pieces by ``count``, times ``factor``.

    Differentiable in ``logits`` alone, whose gradient is found with the value, while a piece is at hand: nothing is computed
    again in the backward. Of float16, whose range losses are scaled for, and in any further backward each piece is.
    """
    at_once = torch.is_grad_enabled() and logits.requires_grad and logits.dtype != torch.float16
    return _MeanOver.apply(logits, of_piece, count, factor, at_once)


class _MeanOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, of_piece: Callable, count: Tensor | int, factor: float, at_once: bool) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.of_piece, ctx.count, ctx.factor, ctx.gradient = of_piece, count, factor, None
        if at_once:
            share = torch.ones((), device=logits.device) * factor / count
            sums, ctx.gradient = _differentiated(logits, of_piece, share)
        else:
            sums = [of_piece(logits[piece], piece) for piece in pieces(logits)]
        if not sums:
            return logits.new_zeros(())
        return torch.stack(sums).double().sum().to(sums[0].dtype) / count * factor

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        found, ctx.gradient = ctx.gradient, None
        if found is not None:
            found.mul_(gradient)
        else:
            _, found = _differentiated(logits, ctx.of_piece, gradient * ctx.factor / ctx.count)
        return found, None, None, None, None


def _differentiated(logits: Tensor, of_piece: Callable, share: Tensor) -> tuple[list[Tensor], Tensor]:
    """The value of each piece, and the gradient of ``share`` times their sum."""
    sums, found = [], torch.empty_like(logits)
    for piece in pieces(logits):
        part = logits[piece].detach().requires_grad_()
        with torch.enable_grad():
            value = of_piece(part, piece)
        sums.append(value.detach())
        found[piece] = torch.autograd.grad(value, part, share.to(value.dtype))[0]
    return sums, found
