"""Adapters of peft that act beside a rounded weight, where merging them would round it once more."""

import sys

from torch import nn

from torchqat.errors import UserError
from torchqat.layers.experts import STATE
from torchqat.layers.quant_layer import QuantLayer


def adapter_beside(model: nn.Module) -> str:
    """The name of a layer of ``model`` whose adapter acts beside a rounded weight; empty where there is none."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for name, module in model.named_modules() if tuners else ():
        if not isinstance(module, tuners.BaseTunerLayer):
            continue
        base = module.get_base_layer()
        is_quantized = isinstance(base, QuantLayer) or STATE in base._modules
        if is_quantized and getattr(getattr(base, "adapter", None), "layer", None) is not module and not module.merged:
            return name
    return ""


def check_adapters(model: nn.Module) -> None:
    """Raises UserError where an adapter of ``model`` acts beside a rounded weight."""
    if name := adapter_beside(model):
        raise UserError(
            f"Adapters must act before weights are rounded, but that of {name} acts beside the rounded weight, and could "
            "not be merged: call torchqat.attach_adapters."
        )
