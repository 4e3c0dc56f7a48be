"""Outputs of a module in an engine, beside those of the training forward."""

from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchqat.data.batch import Batch, call_with
from torchqat.device import device_of
from torchqat.verification.result import OutputAgreement


def outputs_of(model: nn.Module, example: Batch) -> Tensor:
    """What ``model`` gives in evaluation mode, or the first thing in it, float32 on the CPU."""
    return all_outputs_of(model, example)[0].float()


@torch.no_grad()
def all_outputs_of(model: nn.Module, example: Batch) -> list[Tensor]:
    """All tensors that ``model`` gives in evaluation mode, in their order, on the CPU."""
    training, device = model.training, device_of(model)
    model.eval()
    found = call_with(model, example, device)
    model.train(training)
    return [leaf.detach().cpu() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def in_half(model: nn.Module) -> bool:
    """Whether ``model`` computes in half precision: whether its first floating parameter, or buffer, is in another dtype."""
    tensors = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    return next((tensor.dtype != torch.float32 for tensor in tensors), False)


def compared(engine: str, theirs: Tensor, ours: Tensor, bound: float, why: str) -> OutputAgreement:
    """``bound``: relative to the largest of ``ours``."""
    difference = (theirs.float() - ours).abs().max().item()
    return OutputAgreement(engine, difference, bound * max(ours.abs().max().item(), 1e-12), why)
