"""The layers that ``prepare`` put into a model."""

from torch import nn

from torchqat.errors import UserError
from torchqat.layers.quant_layer import QuantLayer


def quant_layers(model: nn.Module) -> list[tuple[str, QuantLayer]]:
    """The prepared layers and their names, in model order."""
    return [(layer.name_of(name), layer) for name, layer in model.named_modules() if isinstance(layer, QuantLayer)]


def require_module(model: object) -> None:
    """Raises UserError if ``model`` is none."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UserError(f"model must be a torch.nn.Module, but is {repr(model) if isinstance(model, str) else what}.")


def require_prepared(model: nn.Module) -> None:
    """Raises UserError if no layer of ``model`` is quantized."""
    require_module(model)
    if not quant_layers(model):
        raise UserError("The model must be prepared first, with torchqat.prepare(model, recipe).")


def weight_name(name: str, layer: QuantLayer) -> str:
    """What the model's state calls the parameter that the layer ``name`` rounds."""
    return name if layer.kind == "Experts" else f"{name}.weight"
