"""The losses of the training loop, per valid token and in float32 (docs/numerics.md 12, 13)."""

import torch.nn.functional as F
from torch import Tensor

from torchqat.data.examples import NO_LABEL
from torchqat.kinds.pieces import Piece, mean_over


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """Mean over tokens of KL(teacher || student), times the squared temperature.

    Float32 log-probabilities are there for some tokens at a time, and the gradient is found with the value.

    Args:
        student: Logits ``[..., vocabulary]``, any floating dtype.
        teacher: Logits of the same shape; no gradient flows into them.
        temperature: Divides both logits.
        counted: bool ``[...]``, the tokens that the mean is over, 0 where there is none; all where ``None``.

    Returns:
        A scalar, in nats.
    """
    student, teacher = _by_rows(student), _by_rows(teacher.detach())
    valid = None if counted is None else counted.reshape(student.shape[:2])

    def of_piece(part: Tensor, piece: Piece) -> Tensor:
        ours = F.log_softmax(part.float() / temperature, dim=-1)
        theirs = F.log_softmax(teacher[piece].float() / temperature, dim=-1)
        if valid is None:
            return F.kl_div(ours, theirs, reduction="sum", log_target=True)
        each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        return each.where(valid[piece], 0.0).sum()

    tokens = student.shape[0] * student.shape[1] if valid is None else valid.sum().clamp(min=1)
    return mean_over(student, of_piece, tokens, temperature**2)


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
