"""A model spread over processes and devices: replicated, cut into parts, compiled."""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn

from torchqat.data.batch import Batch
from torchqat.device import CPU
from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.layers.sharded import local
from torchqat.model.blocks import find_blocks
from torchqat.precision import dtype_word
from torchqat.training.processes import count, is_first

Loss = Callable[[Batch], torch.Tensor]


class _WithLoss(nn.Module):
    """A model and what is computed of its outputs: of the parameters, those that this does not reach get no gradient."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.loss(batch)


def replicate(model: nn.Module, loss: Loss) -> Loss:
    """``loss`` of ``model``, whose gradients are averaged over the processes (``DistributedDataParallel``); alone, ``loss``.

    The first process' numbers are dealt out: what others have calibrated, on another processor perhaps, is not the same.
    Parameters that a batch does not reach, an expert's or those of a pooler, do not wait for it.
    """
    if count() == 1:
        return loss
    for tensor in (*model.parameters(), *model.buffers()):
        value = tensor.detach().contiguous()
        dist.broadcast(value, 0)
        tensor.detach().copy_(value)
    model.load_state_dict(model.state_dict())  # layers take note of what they were given, as after any loading
    # As it says once, where all are reached.
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    # Each process derives its buffers, widths and scales among them, from the step and from parameters that are the same.
    return nn.parallel.DistributedDataParallel(
        _WithLoss(model, loss), broadcast_buffers=False, init_sync=False, find_unused_parameters=True
    )


def shard(model: nn.Module, kind: type[nn.Module], cpu_offload: bool = False, device: torch.device = CPU) -> nn.Module:
    """Spread the parameters of ``model`` over the processes (``fully_shard``, FSDP2), in place, and return it.

    The first process' numbers are dealt out; on the others, parameters may be on the meta device. Each block is gathered
    when its forward or backward begins and let go when that ends, and so is each embedding or head. A
    process rounds the rows that it holds before they are gathered, where that gives the same numbers (rounded_shards.py).

    Args:
        model: On the host; the same module on every process.
        kind: Class of the layers that its blocks are made of.
        cpu_offload: Keep the parts, their gradients and what the optimizer has of them in the host's memory.
        device: Where this process computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (count(),))
    policy = CPUOffloadPolicy(pin_memory=device != CPU) if cpu_offload else OffloadPolicy()
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()} if is_first() else {}
    parts = gathered_together(model, kind)
    _gather_rounded(parts, model)
    for module in [*parts, model]:
        fully_shard(module, mesh=mesh, offload_policy=policy)
    # Else the gradients of experts that tokens reach on one process alone are added to those of others.
    for module in parts:
        if not isinstance(module, nn.Embedding | nn.Linear) and hasattr(module, "set_reduce_scatter_unused_params"):
            module.set_reduce_scatter_unused_params(True)
    home = CPU if cpu_offload else device
    model._apply(lambda tensor: torch.empty_like(tensor, device=home) if tensor.is_meta else tensor)
    _deal_out(model, whole)
    return model


def _gather_rounded(parts: list[nn.Module], model: nn.Module) -> None:
    """Let the layers in ``parts`` round what a process holds of their weights, but for weights that several modules share.

    What is gathered with ``model`` itself stays when a forward ends, and would be stale where layers are asked next.
    """
    owners = [
        (module, name, p) for module in model.modules() for name, p in module._parameters.items() if p is not None
    ]
    holders = Counter(id(parameter) for _, _, parameter in owners)
    places = {id(parameter): (module, name) for module, name, parameter in owners if holders[id(parameter)] == 1}
    for part in parts:
        for _, layer in quant_layers(part):
            if layer.rounds_shards and layer.weight_spec is not None and id(layer.weight) in places:
                layer.gather_rounded(*places[id(layer.weight)])


@torch.no_grad()
def _deal_out(model: nn.Module, whole: dict[str, torch.Tensor]) -> None:
    """Give every process its part of the parameters that the first has ``whole``, which gives them up, and all buffers."""
    from torch.distributed.tensor import distribute_tensor

    for name, parameter in model.named_parameters():
        device = torch.device(parameter.device_mesh.device_type)
        empty = {"dtype": parameter.dtype, "device": device}
        value = whole.pop(name).to(device) if is_first() else torch.empty(parameter.shape, **empty)
        local(parameter).copy_(local(distribute_tensor(value, parameter.device_mesh, parameter.placements)))
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    model.load_state_dict(model.state_dict())  # layers take note of what they were given, as after any loading


def check_gathered(model: nn.Module) -> None:
    """Raises UserError where FSDP2 casts weights before they are rounded: codes would not be those of the masters."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            found = module._get_fsdp_state()._mp_policy.param_dtype
            masters = {layer.weight.dtype for _, layer in quant_layers(module) if layer.weight_spec is not None}
            for dtype in masters - {found} if found is not None else ():
                names = {"dtype": dtype_word(dtype), "found": dtype_word(found)}
                raise UserError(
                    "FSDP2 must gather the weights of quantized layers in their own dtype, {dtype}, since they are rounded "
                    "after it, but MixedPrecisionPolicy has param_dtype {found}; torch.autocast lowers the dtype of "
                    "products.".format(**names)
                )


def gathered_together(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    """The parts of ``model`` that ``shard`` gathers one at a time: blocks, and embeddings and heads that share no weight."""
    blocks = [block for _, block in find_blocks(model, kind)]
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.Linear) and id(m) not in inside]
    holders = Counter(
        id(module.weight) for module in model.modules() if isinstance(getattr(module, "weight", None), nn.Parameter)
    )
    return blocks + [module for module in outside if holders[id(module.weight)] == 1]


def without_sync(loss: Loss, last: bool):
    """For every micro-batch but the last: gradients stay where they are, unless no process has room for all of them."""
    if last or not isinstance(loss, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return loss.no_sync()


@torch.no_grad()
def share_ranges(model: nn.Module) -> None:
    """Give every input that follows what it is given the range of all processes that saw it: the ends, or their mean."""
    if count() == 1:
        return
    observing = [layer for _, layer in quant_layers(model) if layer.observing and layer.input_spec]
    layers = [layer for layer in observing if layer.input_spec.follows and not layer.input_spec.dynamic]
    if not layers:
        return
    ends = torch.stack([torch.cat([-layer.input_low, layer.input_high]).flatten() for layer in layers])
    flags = [
        [layer.input_ready for layer in layers],
        [layer.input_spec.observer == "moving_average" for layer in layers],
    ]
    seen, averaged = torch.tensor(flags).to(ends.device, non_blocking=True)[:, :, None]
    most, total = ends.where(seen, -torch.inf), torch.cat([ends * seen, seen.to(ends.dtype)], 1)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    dist.all_reduce(total)
    # They stay on the device: to read them would wait for it. Only what this process has not seen asks whether another has.
    shared = torch.where(averaged, total[:, :2] / total[:, 2:], most)
    for layer, (low, high), processes in zip(layers, shared, total[:, 2], strict=True):
        if layer.input_ready or processes.item():
            layer.set_input_range(-low, high)


def compile_blocks(model: nn.Module) -> None:
    """``torch.compile`` for each block, or a model without blocks, in place; blocks that are alike share what is made."""
    # Each width of a schedule is a variant, and so are training and evaluation.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for module in [block for _, block in find_blocks(model)] or [model]:
        module.compile()
