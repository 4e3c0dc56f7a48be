"""A checkpoint that anyone has made, beside the float model that it was made of: what its codes stand for, layer by layer.

It says how far the weights are from the float model's. What a training or a calibration meant them to be, nobody here knows.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers import format_of, read_checkpoint
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.layers.conv1d_of_transformers import conv1d_class
from torchqat.verification.unquantized import unquantized

# What quantized layers, inputs and caches have beside weights, by the last part of its name.
_SCALES = ("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale", "output_scale", "q_scale")
_SCALES += ("pre_quant_scale", "weight_scale", "weight_shape", "g_idx", "qzeros", "scales", "kv_scale")
# Beyond which weights have little in common: plain rounding to 2 bits is nearer.
_FAR = 0.9


@dataclass(frozen=True)
class LayerError:
    """One quantized weight beside the float model's.

    Attributes:
        name: In the model.
        elements: Of the weight.
        relative: Norm of the difference over that of the float weight.
    """

    name: str
    elements: int
    relative: float

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, dB."""
        return -20 * math.log10(max(self.relative, 1e-15))


@dataclass(frozen=True)
class Comparison:
    """A checkpoint beside a float model.

    Attributes:
        format: As ``export`` calls it.
        layers: Quantized ones, in model order.
        kept: Elements of what is in floating point and the float model's, rounded to the dtype it is stored in, by name.
        changed: Relative differences of what is in floating point and is not the float model's, by name.
        missing: Tensors of the model, or of a quantized layer, that the checkpoint lacks.
        unexpected: Tensors that the model has no place for.
        notes: What should be known of these figures, one sentence each.
    """

    format: str
    layers: list[LayerError]
    kept: dict[str, int] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it is a checkpoint of that model, whole."""
        return not self.missing and not self.unexpected

    def worst(self) -> list[LayerError]:
        """The layers, those that lose most first."""
        return sorted(self.layers, key=lambda layer: -layer.relative)


@torch.no_grad()
def compare_with_float(folder: Path, model: nn.Module) -> tuple[Comparison, dict[str, Tensor]]:
    """What the checkpoint in ``folder`` holds, decoded, beside ``model``; and all of it, by the model's names and shapes.

    Args:
        folder: Of any format that torchqat reads, whoever wrote it; or a GGUF file.
        model: The float model, not prepared.

    Raises:
        UserError: The folder cannot be read, or a tensor of it has another shape than the model's.
    """
    format = format_of(folder)
    reading = read_checkpoint(folder, model)
    state, modules = model.state_dict(), dict(model.named_modules())
    decoded: dict[str, Tensor] = {}
    layers, unexpected = [], []
    for name, weight in reading.weights.items():
        place = name if name in state else f"{name}.weight"
        if place not in state:
            unexpected.append(name)
            continue
        turned = isinstance(modules.get(name), conv1d_class() or ())
        decoded[place] = _shaped(weight, state[place], place, folder, turned)
        layers.append(LayerError(name, weight.numel(), _relative(decoded[place], state[place])))
    kept, changed = {}, {}
    expected = _expected(folder, format, model, list(reading.others))
    for name, tensor in reading.others.items():
        if name not in expected:
            unexpected += [] if name.rpartition(".")[2] in _SCALES else [name]
            continue
        found = decoded[name] = _shaped(tensor, state[name] if name in state else expected[name], name, folder)
        if torch.equal(found, expected[name].to(found.dtype)):
            kept[name] = tensor.numel()
        else:
            changed[name] = _relative(found, expected[name])
    decoded = {name: tensor for name, tensor in decoded.items() if name in state}
    order = {name: place for place, name in enumerate(state)}
    layers.sort(key=lambda layer: order.get(f"{layer.name}.weight", order.get(layer.name, 0)))
    missing = [*reading.missing, *_missing(model, decoded)]
    return Comparison(format, layers, kept, changed, missing, sorted(unexpected), _notes(layers, changed)), decoded


def _expected(folder: Path, format: str, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """What stays in floating point of ``model``, as this format has it."""
    own = model.state_dict()
    if format != "gguf":
        return own
    with needs("hf", "A GGUF file"):
        from torchqat.verification.unquantized_gguf import unquantized_in_gguf

    return unquantized_in_gguf(folder, model, names)


def _shaped(found: Tensor, wanted: Tensor, name: str, folder: Path, turned: bool = False) -> Tensor:
    """``found`` in the shape of ``wanted``; matrices of experts may be turned round, and those of ``Conv1D`` are."""
    if turned or (found.shape != wanted.shape and found.dim() == 3 and found.mT.shape == wanted.shape):
        found = found.mT
    if found.shape != wanted.shape:
        raise UserError(
            f"--reference must be the float model that {folder} was made of, but {name} is {list(found.shape)} there and "
            f"{list(wanted.shape)} in the model."
        )
    return found


def _relative(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double().cpu()
    return ((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-300)).item()


def _missing(model: nn.Module, found: dict[str, Tensor]) -> list[str]:
    """What the model has under none of the names by which the checkpoint may have it."""
    state = model.state_dict()
    there = {state[name].data_ptr() for name in found}
    return [name for name, tensor in unquantized(model).items() if name not in found and tensor.data_ptr() not in there]


def _notes(layers: list[LayerError], changed: dict[str, float]) -> list[str]:
    found = []
    if not layers:
        found.append("Nothing in it is quantized.")
    if changed:
        name, error = max(changed.items(), key=lambda pair: pair[1])
        found.append(
            f"{len(changed)} tensors in floating point are not the float model's, most of all {name} ({error:.2%}): scales "
            "were folded into them, as AWQ and SmoothQuant do, or they were trained. Errors of single layers then hold that "
            "change as well; KL on data is what counts."
        )
    if layers and sorted(layer.relative for layer in layers)[len(layers) // 2] > _FAR:
        found.append(
            "Half of the layers are further from the float model's than those are large: they were rotated, or are of "
            "another model."
        )
    return found
