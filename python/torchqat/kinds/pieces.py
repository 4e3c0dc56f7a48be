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


def sum_over(logits: Tensor, of_piece: Callable[[Tensor, Piece], Tensor]) -> Tensor:
    """The sum of ``of_piece(logits[piece], piece)`` over all pieces, differentiable in ``logits`` alone.

    The backward computes each piece again: nothing but ``logits`` is kept for it.
    """
    return _SumOver.apply(logits, of_piece)


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, of_piece: Callable[[Tensor, Piece], Tensor]) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.of_piece = of_piece
        sums = [of_piece(logits[piece], piece) for piece in pieces(logits)]
        return torch.stack(sums).double().sum().to(sums[0].dtype) if sums else logits.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        found = torch.empty_like(logits)
        for piece in pieces(logits):
            part = logits[piece].detach().requires_grad_()
            with torch.enable_grad():
                value = ctx.of_piece(part, piece)
            found[piece] = torch.autograd.grad(value, part, gradient)[0]
        return found, None
