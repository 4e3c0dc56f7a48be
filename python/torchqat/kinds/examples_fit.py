"""Whether a classifier takes the inputs that a function of the user's gives, and has the classes that their labels name."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchqat.data.batch import Batch, rows_of
from torchqat.errors import UserError, first_line
from torchqat.precision import dtype_word


@torch.no_grad()
def check_fit(model: nn.Module, batches: Sequence[Batch], source: str) -> None:
    """Tries ``model`` on two examples, and looks at all labels.

    Args:
        model: A classifier in evaluation mode; one without its weights is not tried.
        batches: Inputs and labels, by place; others are not looked at.
        source: Where they come from, for messages.

    Raises:
        UserError: It does not take them, or has other classes.
    """
    given = [batch for batch in batches if isinstance(batch, tuple)]
    if not given or any(parameter.is_meta for parameter in model.parameters()):
        return
    inputs, _ = rows_of(given[0], 0, 2)
    try:
        found = model(inputs)
    except Exception as error:  # whatever a model of the user's raises
        shape, dtype = ", ".join(map(str, inputs.shape[1:])), dtype_word(inputs.dtype)
        raise UserError(
            f"model must take the inputs of data, but {type(model).__name__} does not take those of {source}, [n, {shape}] "
            f"in {dtype}: {first_line(error)}"
        ) from error
    logits = found if isinstance(found, Tensor) else found.logits
    outputs = 1 if logits.dim() == 1 else logits.shape[-1]
    for _, labels in given:
        _check_labels(labels, outputs, source)


def _check_labels(labels: Tensor, outputs: int, source: str) -> None:
    if labels.is_floating_point():
        there = labels.shape[1] if labels.dim() == 2 else 1
        if there != outputs:
            raise UserError(
                f"floating labels must have a number for each output of the model, which has {outputs}, but those of "
                f"{source} have {there}; a class of several is an int64."
            )
    elif outputs > 1:
        if (least := int(labels.min())) < 0:
            raise UserError(f"labels must be from 0 on, but {source} has {least}.")
        if (most := int(labels.max())) >= outputs:
            raise UserError(
                f"labels must be below {outputs}, the number of the model's classes, but {source} has {most}."
            )
