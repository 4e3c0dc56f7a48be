"""The losses of the training loop, per valid token and in float32 (docs/numerics.md 12, 13)."""

import torch.nn.functional as F
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over tokens of KL(teacher || student), times the squared temperature.

    Args:
        student: Logits ``[..., vocabulary]``, any floating dtype.
        teacher: Logits of the same shape; no gradient flows into them.
        temperature: Divides both logits.

    Returns:
        A scalar, in nats.
    """
    vocabulary = student.shape[-1]
    log_student = F.log_softmax(student.float().reshape(-1, vocabulary) / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach().float().reshape(-1, vocabulary) / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean negative log likelihood of each token given those before it.

    Args:
        logits: ``[batch, sequence, vocabulary]``.
        tokens: int64 ``[batch, sequence]``; position ``t`` of the logits predicts token ``t + 1``.
    """
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def half_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Half of the mean squared difference: KL between normal distributions of variance 1, whatever the temperature."""
    return 0.5 * F.mse_loss(student.float(), teacher.detach().float())
