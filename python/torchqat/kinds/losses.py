"""The losses of the training loop, per valid token and in float32 (docs/numerics.md 12, 13)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqat.data.examples import NO_LABEL
from torchqat.kinds.pieces import Piece, mean_over


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """Mean over tokens of KL(teacher || student), times the squared temperature (docs/numerics.md 12).

    One pass over the logits of a token finds it and, where one is asked for, the gradient; no float32 copy of them is made.

    Args:
        student: Logits ``[..., vocabulary]``, any floating dtype.
        teacher: Logits of the same shape; no gradient flows into them.
        temperature: Divides both logits, from 1e-18 to 1e18.
        counted: bool ``[...]``, the tokens that the mean is over, 0 where there is none; all where ``None``.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: Of shapes that differ, or another temperature.
        NotImplementedError: A second derivative is asked for.
    """
    return torch.ops.qat.forward_kl(_narrow(student), _narrow(teacher), temperature, counted)


def kl_per_token(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of each token, float32 ``[...]``, in nats.

    Args:
        student: Logits ``[..., vocabulary]``, any floating dtype.
        teacher: Logits of the same shape.
    """
    return torch.ops.qat.kl_divergence(_narrow(student), _narrow(teacher))[0]


def _narrow(logits: Tensor) -> Tensor:
    """Of at most 32 bits."""
    return logits.float() if logits.dtype == torch.float64 else logits


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log likelihood of each token given those before it.

    Args:
        logits: ``[batch, sequence, vocabulary]``.
        tokens: int64 ``[batch, sequence]``; position ``t`` of the logits predicts token ``t + 1``.
    """
    predicted = tokens[:, 1:]
    return _negative_log_likelihood(logits, F.pad(predicted, (0, 1), value=NO_LABEL), predicted.numel())


def cross_entropy_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood of ``targets`` under ``logits``.

    Args:
        logits: ``[..., choices]``.
        targets: int64 ``[...]``, -100 where there is none; the mean of none is 0.
    """
    return _negative_log_likelihood(logits, targets, (targets != NO_LABEL).sum().clamp(min=1))


def _negative_log_likelihood(logits: Tensor, targets: Tensor, count: Tensor | int) -> Tensor:
    logits = _by_rows(logits)
    targets = targets.reshape(logits.shape[:2])

    def of_piece(part: Tensor, piece: Piece) -> Tensor:
        flat = part.float().flatten(0, 1)
        return F.cross_entropy(flat, targets[piece].flatten(), reduction="sum", ignore_index=NO_LABEL)

    return mean_over(logits, of_piece, count)


def _by_rows(logits: Tensor) -> Tensor:
    """``[rows, positions, choices]``."""
    return logits if logits.dim() == 3 else logits.reshape(1, -1, logits.shape[-1])


def half_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Half of the mean squared difference: KL between normal distributions of variance 1, whatever the temperature."""
    return 0.5 * F.mse_loss(student.float(), teacher.detach().float())
