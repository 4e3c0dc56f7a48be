"""Outputs of a module in an engine, beside those of the training forward."""

from typing import Any

import torch
from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.verification import OutputAgreement


def as_inputs(example: Any) -> tuple[Tensor, ...]:
    """``example`` as a tuple of tensors.

    Raises:
        UserError: There is none.
    """
    if example is None:
        raise UserError(
            "example must be given, as the tensor or the tuple of tensors that the model takes, but is not; onnx is traced "
            "with it, and engines are asked it."
        )
    return tuple(example) if isinstance(example, (tuple, list)) else (example,)


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """What ``model`` gives in evaluation mode, or the first thing in it, float32 on the CPU."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found = model(*[x.to(device) for x in inputs])
    model.train(training)
    if not isinstance(found, Tensor):
        found = found[0] if isinstance(found, (tuple, list)) else next(iter(found.values()))
    return found.detach().float().cpu()


def compared(engine: str, theirs: Tensor, ours: Tensor, bound: float, why: str) -> OutputAgreement:
    """``bound``: relative to the largest of ``ours``."""
    difference = (theirs.float() - ours).abs().max().item()
    return OutputAgreement(engine, difference, bound * max(ours.abs().max().item(), 1e-12), why)
