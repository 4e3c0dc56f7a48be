"""What a teacher says in short: its likeliest choices, and the rest as one (docs/numerics.md 12b)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchqat.kinds.pieces import Piece, mean_over, pieces


@dataclass(frozen=True)
class TopChoices:
    """The ``k`` likeliest choices of each position.

    Attributes:
        choices: int32 ``[rows, positions, k]``, the likeliest first.
        log_probabilities: float32 ``[rows, positions, k + 1]``, those of the choices and, last, of all others together.
    """

    choices: Tensor
    log_probabilities: Tensor


def top_choices(logits: Tensor, count: int, temperature: float = 1.0) -> TopChoices:
    """The ``count`` likeliest choices of each position.

    Args:
        logits: ``[rows, positions, vocabulary]``, any floating dtype; more choices than ``count``.
        count: ``k``, at least 1.
        temperature: Divides the logits.
    """
    rows, positions, _ = logits.shape
    choices = torch.empty(rows, positions, count, dtype=torch.int32, device=logits.device)
    found = torch.empty(rows, positions, count + 1, dtype=torch.float32, device=logits.device)
    for piece in pieces(logits):
        ours = F.log_softmax(logits[piece].float() / temperature, dim=-1)
        likeliest, places = ours.topk(count, dim=-1)
        choices[piece] = places.int()
        found[piece] = torch.cat([likeliest, _of_the_rest(ours, places)], -1)
    return TopChoices(choices, found)


def kl_to_top(student: Tensor, teacher: TopChoices, temperature: float = 1.0, counted: Tensor | None = None) -> Tensor:
    """Mean over tokens of KL(teacher || student) where all but the teacher's choices count as one choice.

    It is at most ``forward_kl`` of all choices. Nothing in float32 is there for all tokens at a time.

    Args:
        student: Logits ``[rows, positions, vocabulary]``, any floating dtype.
        teacher: Of the same rows and positions, found at the same ``temperature``.
        temperature: Divides the student's logits; the result is times its square.
        counted: bool ``[rows, positions]``, the tokens that the mean is over, 0 where there is none; all where ``None``.

    Returns:
        A scalar, in nats.
    """

    def of_piece(part: Tensor, piece: Piece) -> Tensor:
        ours = F.log_softmax(part.float() / temperature, dim=-1)
        places, theirs = teacher.choices[piece].long(), teacher.log_probabilities[piece]
        ours = torch.cat([ours.gather(-1, places), _of_the_rest(ours, places)], -1)
        each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        return each.sum() if counted is None else each.where(counted[piece], 0.0).sum()

    tokens = student.shape[0] * student.shape[1] if counted is None else counted.sum().clamp(min=1)
    return mean_over(student, of_piece, tokens, temperature**2)


def _of_the_rest(log_probabilities: Tensor, places: Tensor) -> Tensor:
    """The logarithm of what all choices but those at ``places`` have together, ``[..., 1]``."""
    return log_probabilities.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True)
