"""Whether what stays in floating point has numbers, and ones that the dtype of a file holds."""

import math

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan
from torchqat.errors import UserError
from torchqat.layers.layer_state import SCALE_NAMES
from torchqat.layers.sharded import whole

# Those that torch can ask whether they are finite.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@torch.no_grad()
def check_numbers(model: nn.Module, plan: CheckpointPlan) -> None:
    """Whether every parameter is there, and those that stay in floating point are finite; the others ``convert`` looks at.

    Of a model that is spread over processes every one has to call it.

    Raises:
        UserError: The first that is not.
    """
    quantized = {name for layer in plan.layers for name in (layer.name, f"{layer.name}.weight")}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(
                f"{name} must have numbers to be exported, but is on the device meta: load them first, or prepare the model "
                "where it has them."
            )
        is_asked = parameter.dtype in _DTYPES and name not in quantized and name.rpartition(".")[2] not in SCALE_NAMES
        if is_asked and (bad := int((~whole(parameter).isfinite()).sum())):
            raise UserError(f"{name} must be finite to be exported, but has {bad} elements that are NaN or infinite.")


def held_in(name: str, tensor: Tensor, dtype: torch.dtype, largest: float | None = None) -> Tensor:
    """``tensor`` in ``dtype``, of which its numbers are no infinities unless they were.

    Args:
        name: Of the tensor, for the sentence.
        tensor: Whole numbers stay as they are.
        dtype: Of the file.
        largest: What can be stored, where it is not what ``dtype`` can hold.

    Raises:
        UserError: A number is beyond what ``dtype`` can hold.
    """
    if not tensor.is_floating_point() or not dtype.is_floating_point:
        return tensor.to(dtype)
    largest = torch.finfo(dtype).max if largest is None else largest
    if tensor.numel() and not tensor.is_meta and torch.finfo(tensor.dtype).max > largest:
        found = _largest(tensor)
        if found > largest:
            raise UserError(
                f"{name} must be at most {largest:g} to be stored in {str(dtype).removeprefix('torch.')}, but has "
                f"{found:g}: export in a format and dtype that hold it, such as compressed-tensors in bfloat16."
            )
    return tensor.to(dtype)


def _largest(tensor: Tensor) -> float:
    """The size of the largest finite number; without a copy of the tensor where all are finite."""
    ends = torch.stack(tensor.detach().aminmax()).abs().tolist()
    if all(map(math.isfinite, ends)):
        return max(ends)
    finite = tensor[tensor.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0
