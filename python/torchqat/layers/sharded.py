"""Parameters of which every process holds a part, PyTorch's ``DTensor``, beside those that are whole."""

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of its parameters. Its methods then have to be called on all of them."""
    return any(is_part(parameter) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered from the processes that hold parts of it."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``."""
    return tensor.to_local() if is_part(tensor) else tensor


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy ``value``, which is whole and the same on every process, into ``target``."""
    if is_part(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device, target.dtype).expand(target.shape)
        value = distribute_tensor(value.contiguous(), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def is_part(tensor: Tensor) -> bool:
    """Whether processes hold parts of it."""
    return hasattr(tensor, "full_tensor")


def part_like(tensor: Tensor, held: Tensor) -> Tensor:
    """What is spread as ``tensor`` is, and of which this process holds ``held``."""
    from torch.distributed.tensor import DTensor

    places = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
    return DTensor.from_local(held, tensor.device_mesh, tensor.placements, **places)
