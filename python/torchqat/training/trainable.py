"""What a prepared model must not be for its training to reach what is exported, found before the first step."""

from torch import nn

from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers
from torchqat.training.lora import adapter_beside


def check_trainable(model: nn.Module) -> None:
    """Refuse what other libraries have made of a prepared ``model`` and a schedule cannot follow.

    Raises:
        UserError: An adapter of peft acts beside the rounded weight of a layer, or parameters are taken apart outside of
            the forward, as DeepSpeed's ZeRO-3 and FSDP1 do.
    """
    name = adapter_beside(model)
    if name:
        raise UserError(
            f"Adapters must act before weights are rounded, but that of {name} acts beside the rounded weight, and could "
            "not be merged: call torchqat.attach_adapters."
        )
    for name, layer in quant_layers(model):
        why = _taken_apart(layer)
        if why:
            raise UserError(
                f"The weight of {name} must keep its shape outside of the forward, where its scales are derived, but "
                f"{why}: use DDP, ZeRO-1 or -2, or FSDP2 (fsdp_version: 2)."
            )


def _taken_apart(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    if hasattr(weight, "ds_id"):
        return "DeepSpeed ZeRO-3 has partitioned it"
    if weight is None or getattr(weight, "_fsdp_flattened", False) or tuple(weight.shape) != layer.weight_shape:
        found = "gone" if weight is None else list(weight.shape)
        return f"it is {found} in place of {list(layer.weight_shape)}, as FSDP1 and ZeRO-3 make it"
    return ""
