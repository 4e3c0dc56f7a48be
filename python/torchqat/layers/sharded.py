"""Parameters of which every process holds a part, PyTorch's ``DTensor``, beside those that are whole."""

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of its parameters. Its methods then have to be called on all of them."""
    return any(_is_part(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered from the processes that hold parts of it."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``."""
    return tensor.to_local() if _is_part(tensor) else tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy ``value``, which is whole and the same on every process, into ``target``."""
    if _is_part(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype).expand(target.shape)
        value = distribute_tensor(value.contiguous(), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def _is_part(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
