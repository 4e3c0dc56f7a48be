"""Where numbers stopped being numbers: for the message of a training that has to stop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import SCALE_NAMES
from torchqat.layers.sharded import is_sharded, local
from torchqat.model.blocks import hooks
from torchqat.training.processes import first_said


@torch.no_grad()
def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """The first thing in ``model`` that is not finite, in words that follow "the first is"; empty where nothing is.

    A parameter or scale, in the order of the model; else the output of the first module for which ``run`` gives one. Every
    process has to call it.
    """
    found: list[str] = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(local(tensor)).all():
            found.append(name)
            break
    if broken := first_said(found):
        return broken

    def watch(name: str):
        def look(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor) and not found and not torch.isfinite(output).all():
                found.append(f"the output of {name}")

        return look

    with hooks([module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]):
        run()
    return first_said(found)


def scale_not_finite(model: nn.Module) -> str:
    """The name of the first learned scale or zero point that is not finite; empty where all are."""
    found = []
    for name, layer in quant_layers(model):
        for leaf in SCALE_NAMES:
            value = getattr(layer, leaf, None)
            if isinstance(value, nn.Parameter) and not torch.isfinite(local(value.detach())).all():
                found.append(f"{name}.{leaf}")
    return first_said(found) if is_sharded(model) else next(iter(found), "")
