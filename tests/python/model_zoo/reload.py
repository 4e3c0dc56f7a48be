"""Exports read back by those who did not write them, beside what training used."""

import copy
import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import torchqat
from torch import Tensor, nn
from torchqat.layers.prepared import quant_layers

from model_zoo.subject import Subject

# Of the largest output: the same weights in the same operations, in float32.
BOUND = 1e-5


def expected_weights(subject: Subject, model: nn.Module | None = None) -> dict[str, Tensor]:
    """What the float model would be filled with to be what a prepared one, by default the subject's, computes with."""
    model = subject.model if model is None else model
    state = model.state_dict()
    found = {name: state[name] for name in subject.plain.state_dict() if name in state}
    for name, layer in quant_layers(model):
        if layer.weight_spec is not None:
            rounded = layer.shaped(layer.quantized_weight())
            found.update(dict.fromkeys(_names_of(subject.plain, subject.weight_of(name)), rounded))
    return found


def _names_of(model: nn.Module, name: str) -> list[str]:
    """Of a parameter that several layers share, all."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [other for other, parameter in parameters.items() if parameter is parameters[name]]


def by_transformers(folder: Path, model: nn.Module, batch: dict[str, Tensor]) -> nn.Module:
    """The folder as transformers' own loader reads it, with dense weights."""
    from transformers.utils.quantization_config import CompressedTensorsConfig

    config = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    # The class that trained: an architecture may have several heads for one purpose.
    load = partial(type(model).from_pretrained, folder, dtype="auto")
    if not config:
        return load().eval()
    if len(config.get("config_groups", {})) == 1:
        # Not all that it puts together from several can become dense while it loads.
        with suppress(AttributeError, RuntimeError, ValueError):
            options = {"quantization_config": CompressedTensorsConfig(dequantize=True), "output_loading_info": True}
            loaded, found = load(**options)
            if not found["missing_keys"]:
                return loaded.eval()
    loaded = load().eval()
    loaded(**batch)  # in which weights become dense
    return loaded


def by_torchqat(folder: Path, plain: nn.Module) -> nn.Module:
    """The format ``safetensors``, into a float model."""
    return torchqat.load(copy.deepcopy(plain), folder)


def differences(loaded: nn.Module, expected: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit, or are not there."""
    state = loaded.state_dict()
    return [
        name
        for name, tensor in expected.items()
        if name not in state
        or state[name].shape != tensor.shape
        or not torch.equal(state[name], tensor.to(state[name].dtype))
    ]


@torch.no_grad()
def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the model computes: logits, else its last hidden states, else its first floating-point output."""
    torch.manual_seed(0)
    return output_of(model(**batch))


def output_of(found) -> Tensor:
    for key in ("logits", "last_hidden_state", "logits_per_image"):
        if getattr(found, key, None) is not None:
            return getattr(found, key)
    values = found if isinstance(found, tuple) else found.to_tuple()
    return next(value for value in values if isinstance(value, Tensor) and value.is_floating_point())


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest output."""
    return ((one - other).abs().max() / other.abs().max().clamp_min(1e-12)).item()
