"""What trains: all, adapters, or scales alone, the codes staying as they are (EfficientQAT's E2E-QP, arXiv 2407.11062)."""

import torch
from torch import nn

from torchqat._library import TrainSection
from torchqat.errors import UserError
from torchqat.layers.prepared import quant_layers, require_prepared
from torchqat.layers.quant_layer import SCALE_NAMES
from torchqat.model.towers import beside_language_model
from torchqat.training.lora import add_adapters


def freeze_codes(model: nn.Module) -> nn.Module:
    """Leave the learned scales of a prepared ``model`` as all that trains, in place, and return it.

    The weights keep the codes that they have: GPTQ's, say. What an optimizer holds shrinks to one number a group.

    Raises:
        UserError: The model is not prepared, or a weight has no learned scale (the layer is named).
    """
    require_prepared(model)
    layers = [(name, layer) for name, layer in quant_layers(model) if layer.weight_spec is not None]
    for name, layer in layers:
        if layer.weight_spec.scale != "learned":
            raise UserError(
                f"To train scales alone, every weight must have a learned scale, but that of {name} is {layer.weight_spec}."
            )
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in SCALE_NAMES:
            parameter.requires_grad_(False)
    for _, layer in layers:
        layer.freeze_codes()
    return model


def choose_parameters(settings: TrainSection, model: nn.Module) -> None:
    """Leave what the recipe's ``train.parameters`` names as all that trains; of it, what reads text."""
    beside = beside_language_model(model)
    for module in model.modules() if beside else ():
        if id(module) in beside:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    if settings.parameters == "scales":
        freeze_codes(model)
    if settings.parameters == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # they begin at random numbers
            add_adapters(model, settings.lora)
