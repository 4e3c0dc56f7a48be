"""The loss of predictions of which some alone count."""

import torch.nn.functional as F
from torch import Tensor

from torchqat._library import DistillSection
from torchqat.data.examples import NO_LABEL
from torchqat.kinds.kind import Teacher, distilled
from torchqat.kinds.losses import cross_entropy_of


def counted_loss(
    settings: DistillSection, student: Tensor, teacher: Teacher | None, batch: dict[str, Tensor]
) -> Tensor:
    """The loss of the recipe's ``distill`` section over the tokens of ``batch`` that have a label.

    Args:
        settings: Which loss.
        student: Logits ``[rows, tokens, vocabulary]``; those at position ``t`` predict token ``t + 1``.
        teacher: The same of the float model, or ``None``.
        batch: ``labels`` int64 ``[rows, tokens]``, -100 where nothing is to be predicted. Where it is a part of a step's,
            ``predictions`` ``[rows]`` is how many there are in a row of all of it on average: the mean over the losses of
            parts of like size is then that over all predictions of the step, whichever part they are in.
    """
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=NO_LABEL)
    counted = targets != NO_LABEL
    mean = distilled(settings, student, teacher, lambda: cross_entropy_of(student, targets), counted)
    if "predictions" not in batch:
        return mean
    return mean * (counted.sum() / batch["predictions"].sum())
