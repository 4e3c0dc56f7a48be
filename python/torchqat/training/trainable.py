"""What a prepared model must not be for its training to reach what is exported, found before the first step."""

from torch import nn

from torchqat.errors import UserError
from torchqat.layers.adapters import check_adapters
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer


def check_trainable(model: nn.Module) -> None:
    """Refuse what other libraries have made of a prepared ``model`` and a schedule cannot follow.

    Raises:
        UserError: An adapter of peft acts beside the rounded weight of a layer, or parameters are taken apart outside of
            the forward, as DeepSpeed's ZeRO-3 and FSDP1 do.
    """
    check_adapters(model)
    for name, layer in quant_layers(model):
        why = _taken_apart(layer)
        if why:
            raise UserError(
                f"The weight of {name} must keep its shape outside of the forward, where its scales are derived, but "
                f"{why}: use DDP, ZeRO-1 or -2, or FSDP2 (fsdp_version: 2)."
            )


def _taken_apart(layer: QuantLayer) -> str:
    of_experts = isinstance(layer, QuantExperts)
    held = layer.holder._parameters.get(layer.leaf) if of_experts else layer._parameters.get("weight")
    if hasattr(held, "ds_id"):
        return "DeepSpeed ZeRO-3 has partitioned it"
    if held is None or getattr(held, "_fsdp_flattened", False):
        return "FSDP1 has flattened it"
    if tuple(held.shape) != layer.weight_shape:
        return f"it is {list(held.shape)} in place of {list(layer.weight_shape)}, as ZeRO-3 and FSDP1 make it"
    return ""
