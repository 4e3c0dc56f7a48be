"""Outputs of a module in an engine, beside those of the training forward."""

from itertools import chain

import torch
from torch import Tensor, nn

from torchqat.data.batch import Batch, call_with
from torchqat.device import device_of
from torchqat.verification.result import OutputAgreement


@torch.no_grad()
def outputs_of(model: nn.Module, example: Batch) -> Tensor:
    """What ``model`` gives in evaluation mode, or the first thing in it, float32 on the CPU."""
    training, device = model.training, device_of(model)
    model.eval()
    found = call_with(model, example, device)
    model.train(training)
    if not isinstance(found, Tensor):
        found = found[0] if isinstance(found, (tuple, list)) else next(iter(found.values()))
    return found.detach().float().cpu()


def in_half(model: nn.Module) -> bool:
    """Whether ``model`` computes in half precision: whether its first floating parameter, or buffer, is in another dtype."""
    tensors = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    return next((tensor.dtype != torch.float32 for tensor in tensors), False)


def compared(engine: str, theirs: Tensor, ours: Tensor, bound: float, why: str) -> OutputAgreement:
    """``bound``: relative to the largest of ``ours``."""
    difference = (theirs.float() - ours).abs().max().item()
    return OutputAgreement(engine, difference, bound * max(ours.abs().max().item(), 1e-12), why)
