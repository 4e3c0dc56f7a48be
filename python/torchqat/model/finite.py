"""Whether a float model's numbers are such: what is NaN or infinite where it is opened is so in all that follows."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from torchqat.errors import UserError


def check_finite(model: nn.Module, path: str, besides: Collection[int] = ()) -> None:
    """Raises UserError, naming the first, if a parameter or buffer has elements that are not finite.

    Parameters whose ``id`` is in ``besides`` are left out.
    """
    for name, parameter in model.named_parameters():
        if id(parameter) not in besides:
            check_numbers(name, parameter.detach(), path)
    for name, buffer in model.named_buffers():
        check_numbers(name, buffer, path, is_buffer=True)


def check_numbers(name: str, tensor: Tensor, path: str, is_buffer: bool = False) -> None:
    """The same of one tensor, of which a buffer may be infinite where it bounds or masks."""
    if tensor.is_meta or not tensor.is_floating_point() or tensor.itemsize == 1 or not (~tensor.isfinite()).any():
        return
    if is_buffer and (_bounds(tensor) or _masks(tensor)):
        return
    what = "numbers" if is_buffer else "weights"
    raise UserError(f"The {what} of {path} must be finite, but {name} has NaN or infinite elements.")


def _bounds(buffer: Tensor) -> bool:
    """Infinite throughout, as an end of a range is that leaves everything inside."""
    return bool(buffer.isinf().all())


def _masks(buffer: Tensor) -> bool:
    """To be added to scores: zeros, or in a matrix of them any numbers, as ALiBi has, beside negative infinities."""
    if buffer.dim() < 2:
        return bool(((buffer == 0) | (buffer == -torch.inf)).all())
    return bool((buffer < torch.inf).all())
