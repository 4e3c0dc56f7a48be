"""LoRA adapters (arXiv 2106.09685) trained through the quantizer: they are added to the weights before these are rounded.

Adapters that are added to the output of a quantized layer cannot be merged into it: its weight would have to be rounded
again, and would no longer be what training saw. Here the forward rounds the sum, so that merging changes nothing.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from torchqat._library import LoraSection
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.layers.linear import QuantLinear
from torchqat.layers.prepared import quant_layers, require_prepared
from torchqat.layers.quant_layer import SCALE_NAMES


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
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"LoRA adapts linear layers alone, so that {names[0]}{more} do not train."


def attach_adapters(model: nn.Module) -> nn.Module:
    """Let the LoRA adapters of ``model``, which peft has added to its quantized layers, act before the weights are rounded.

    For a model that was prepared and then given to ``peft.get_peft_model``. peft's ``merge_and_unload`` gives the prepared
    model back, its weights the same bits that were trained; export that.

    Raises:
        UserError: No quantized linear layer has an adapter, or one has a kind that cannot be merged (DoRA, dropout).
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
        if any(module.use_dora.values()) or any(
            isinstance(d, nn.Dropout) and d.p for d in module.lora_dropout.values()
        ):
            raise UserError(f"The adapter of {name} must have neither DoRA nor dropout, since neither can be merged.")
    for _, module in adapted:
        module.__class__ = _merged_first(type(module))
        module.base_layer.adapter = _Delta(module)
        module.base_layer.forget_weight()
    for _, layer in quant_layers(model):
        for name in SCALE_NAMES:
            if isinstance(getattr(layer, name, None), nn.Parameter):
                getattr(layer, name).requires_grad_(True)
    return model


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
        found = [self.layer.get_delta_weight(name) for name in self.layer.active_adapters if name in self.layer.lora_A]
        return sum(found[1:], found[0]) if found else None


_CLASSES: dict[type, type] = {}


def _merged_first(kind: type) -> type:
    """``kind`` of LoRA layer, but for its sum: the base layer has the adapter in its weight."""
    if kind not in _CLASSES:

        class MergedFirst(kind):
            def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
                return self.base_layer(x)

            def merge(self, *args, **kwargs) -> None:
                super().merge(*args, **kwargs)
                self.base_layer.adapter = None
                self.base_layer.forget_weight()

            def unmerge(self) -> None:
                super().unmerge()
                self.base_layer.adapter = _Delta(self)
                self.base_layer.forget_weight()

        _CLASSES[kind] = MergedFirst
    return _CLASSES[kind]


def _peft():
    with needs("lora", "LoRA"):
        import peft
    return peft
