"""LoRA adapters (arXiv 2106.09685) trained through the quantizer: they are added to the weights before these are rounded.

Adapters that are added to the output of a quantized layer cannot be merged into it: its weight would have to be rounded
again, and would no longer be what training saw. Here the forward rounds the sum, so that merging changes nothing.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from torchqat._library import LoraSection
from torchqat.errors import UserError, first_of
from torchqat.extras import needs
from torchqat.layers.adapters import adapter_beside
from torchqat.layers.layer_state import SCALE_NAMES
from torchqat.layers.linear import QuantLinear
from torchqat.layers.made_class import reduce_made
from torchqat.layers.prepared import quant_layers, require_prepared
from torchqat.training.adapter_state import keep_with_adapters


def add_adapters(model: nn.Module, settings: LoraSection) -> nn.Module:
    """Give each quantized linear layer of a prepared ``model`` a LoRA adapter, in place, and return it.

    What trains then is the adapters, and learned scales; all else is frozen.

    Raises:
        UserError: The model is not prepared, no linear layer is quantized, or peft is not installed.
    """
    require_prepared(model)
    targets = [name for name, layer in quant_layers(model) if isinstance(layer, QuantLinear) and layer.weight_spec]
    if not targets:
        raise UserError("LoRA needs at least one linear layer with a quantized weight, but there is none.")
    peft = _peft()
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=targets)
    peft.inject_adapter_in_model(config, model)
    return attach_adapters(model)


def without_adapter(model: nn.Module) -> str:
    """A sentence on the quantized layers of a prepared model that can have no adapter; empty where there are none."""
    names = [n for n, layer in quant_layers(model) if layer.weight_spec and not isinstance(layer, QuantLinear)]
    if not names:
        return ""
    return f"LoRA adapts linear layers alone, so that {first_of(names)} do not train."


def attach_adapters(model: nn.Module) -> nn.Module:
    """Let the LoRA adapters of ``model``, which peft has added to its quantized layers, act before the weights are rounded.

    For a model that was prepared and then given to ``peft.get_peft_model``; ``TrainerCallback`` does it where a trainer
    was given ``peft_config``. peft's ``merge_and_unload`` gives the prepared model back, its weights the same bits that
    were trained; export that. What peft saves of the adapters has the scales, widths and step of the model with it, and
    ``load_adapter`` of a model whose adapters are attached brings them back.

    Raises:
        UserError: No quantized linear layer has an adapter, one has a kind that cannot be added to a weight (DoRA and other
            variants, dropout, a bias of its own), or a layer that has none here has one (convolutions, embeddings, experts).
    """
    lora = _peft().tuners.lora
    adapted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, lora.Linear) and isinstance(module.base_layer, QuantLinear)
    ]
    if not adapted:
        raise UserError("The model must have LoRA adapters on quantized layers, but has none; add them after prepare.")
    for name, module in adapted:
        if what := _beyond_the_weight(module):
            raise UserError(
                f"The adapter of {name} must add to the weight alone to be rounded with it, but has {what}."
            )
    for _, module in adapted:
        if module.base_layer.adapter is None:
            module.__class__ = merged_first(type(module))
            module.base_layer.adapter = _Delta(module)
            module.base_layer.forget_weight()
            module.base_layer.frozen_weight.forget()
    if name := adapter_beside(model):
        raise UserError(
            f"The adapter of {name} must be of a quantized linear layer, but is of another layer, beside whose rounded "
            "weight it would act; leave it out of target_modules and target_parameters, or leave that layer by a rule with "
            "weight: float."
        )
    for _, layer in quant_layers(model):
        for name in SCALE_NAMES:
            if isinstance(getattr(layer, name, None), nn.Parameter):
                getattr(layer, name).requires_grad_(True)
    if hasattr(model, "get_base_model"):  # peft saves it
        keep_with_adapters(model.get_base_model(), adapted[0][1], list(model.peft_config))
    return model


def _beyond_the_weight(module: nn.Module) -> str:
    """What the adapters of a LoRA layer do beside adding to its weight."""
    if any(module.use_dora.values()):
        return "DoRA, which scales the sum"
    if any(isinstance(dropout, nn.Dropout) and dropout.p for dropout in module.lora_dropout.values()):
        return "dropout, which is of its input"
    if any(getattr(module, "lora_bias", {}).values()):
        return "a bias of its own (lora_bias)"
    variants = [type(variant).__name__ for variant in getattr(module, "lora_variant", {}).values()]
    return f"a forward of its own ({variants[0]})" if variants else ""


def merge_adapters(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights and remove them, in place; the model gives the same results as before."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and isinstance(getattr(module, "base_layer", None), QuantLinear):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


@dataclass
class _Delta:
    """What the active adapters of a LoRA layer add to its weight."""

    layer: nn.Module

    def __call__(self) -> Tensor | None:
        if self.layer.disable_adapters:
            return None
        with _in_full_precision(self.layer):
            names = [name for name in self.layer.active_adapters if name in self.layer.lora_A]
            found = [self.layer.get_delta_weight(name) for name in names]
        return sum(found[1:], found[0]) if found else None


def _in_full_precision(layer: nn.Module) -> torch.autocast:
    """What is added to the weight is the same wherever it is asked for: autocast would multiply it out in 16 bits."""
    return torch.autocast(layer.base_layer.weight.device.type, enabled=False)


@cache
def merged_first(kind: type) -> type:
    """``kind`` of LoRA layer, but for its sum: the base layer has the adapter in its weight."""

    class MergedFirst(kind):
        def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
            return self.base_layer(x)

        def merge(self, *args, **kwargs) -> None:
            with _in_full_precision(self):
                super().merge(*args, **kwargs)
            self.base_layer.adapter = None
            self.base_layer.forget_weight()

        def unmerge(self) -> None:
            with _in_full_precision(self):
                super().unmerge()
            self.base_layer.adapter = _Delta(self)
            self.base_layer.forget_weight()

        def __reduce_ex__(self, protocol):
            return reduce_made(self, merged_first, kind, protocol)

    return MergedFirst


def _peft():
    with needs("lora", "LoRA"):
        import peft
    return peft
