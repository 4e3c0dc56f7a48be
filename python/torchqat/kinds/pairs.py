"""What rerankers and encoders share: how long texts may be, and whether examples are ordered as their labels are."""

from typing import Any

import torch
from torch import Tensor, nn

from torchqat.errors import UserError


def length_of(model: nn.Module, tokenizer: Any) -> int:
    """The most tokens that ``model`` takes."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    return min(tokenizer.model_max_length, most)


def share_ordered_right(values: Tensor, labels: Tensor) -> list[float]:
    """For each example, the share of those with another label that ``values`` orders as the labels do.

    Args:
        values: ``[n]``.
        labels: Numbers ``[n]``.

    Raises:
        UserError: All labels are the same.
    """
    order = torch.sign(labels[:, None].double() - labels.double())
    right = torch.sign(values[:, None].double() - values.double()) == order
    others = order != 0
    if not others.any():
        raise UserError(
            f"Held-out labels must have two values or more to order examples by, but all are {labels[0]:g}."
        )
    return ((right & others).sum(1) / others.sum(1).clamp(min=1)).double().tolist()
