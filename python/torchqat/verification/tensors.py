"""Every tensor that a reader finds in a checkpoint beside what training used."""

from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, QuantizedWeights
from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.formats.naming import is_compressed_tensors
from torchqat.checkpoints.formats.tensors import cache_scales, checkpoint_plan
from torchqat.checkpoints.readers import read_checkpoint
from torchqat.checkpoints.readers.reading import Reading
from torchqat.extras import needs
from torchqat.layers.experts import QuantExperts
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.passed_over import passed_over
from torchqat.progress import counted
from torchqat.verification.result import Verification
from torchqat.verification.settings import differing_settings, narrowing_dtype
from torchqat.verification.storage import differing_storage
from torchqat.verification.unquantized import unquantized

# What a dense weight may be rounded to.
_SERVED = (torch.float32, torch.float16, torch.bfloat16)


def compare_tensors(folder: Path, format: str, model: nn.Module) -> Verification:
    """Read the checkpoint in ``folder`` and compare each tensor with what ``model`` has for it, bit for bit.

    Layers are compared as dequantized matrices, and with the weight that the forward of training multiplies by.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    reading = read_checkpoint(folder, model)
    plan = checkpoint_plan(model)
    expected = _expected_others(folder, format, model, reading)
    differing: dict[str, int] = {}
    missing = list(reading.missing)
    trained_layers = dict(quant_layers(model))
    found_layers = {name.rpartition(".")[0] for name in missing}
    layers = counted(convert_layers(model, torch.float32), f"Reading {format} back", len(plan.layers))
    for layer in layers:
        expected.update(_expected_of_input(layer, format))
        read = reading.weights.get(layer.name)
        if read is None:
            if layer.name not in found_layers:
                missing.append(f"{layer.name}.weight")
            continue
        exact = read.dtype if read.dtype in _SERVED else torch.float32
        trained = trained_layers[layer.name]
        count = _differing(read, _as_read(trained, layer.dequantize(exact), read, format)) + _unlike_training(
            trained, layer
        )
        if count:
            differing[layer.name] = count
    missing += [name for name in expected if name not in reading.others]
    for name in expected.keys() & reading.others.keys():
        count = _differing(reading.others[name], expected[name])
        if count:
            differing[name] = count
    return Verification(
        len(plan.layers),
        dict(sorted(differing.items())),
        missing,
        _unexpected(reading, plan, expected),
        settings=differing_settings(folder, format, model)
        + differing_storage(folder, format, model)
        + narrowing_dtype(folder, format, reading.others.values()),
    )


def _unexpected(reading: Reading, plan: CheckpointPlan, expected: dict[str, Tensor]) -> list[str]:
    planned = {layer.name for layer in plan.layers}
    return sorted([n for n in reading.weights if n not in planned] + [n for n in reading.others if n not in expected])


def _expected_others(folder: Path, format: str, model: nn.Module, reading: Reading) -> dict[str, Tensor]:
    if format == "gguf":
        with needs("hf", "A GGUF file"):
            from torchqat.verification.unquantized_gguf import unquantized_in_gguf

        return unquantized_in_gguf(folder, model)
    expected = unquantized(model)
    if format != "onnx":
        return {**expected, **cache_scales(model, format), **dict(passed_over(model).tensors())}
    # A graph has what it uses, constants of its own among it; one that lacks something does not load.
    used = {name: tensor for name, tensor in expected.items() if name in reading.others}
    scales = ("input_scale", "input_zero_point", "input_low")
    reading.others = {n: t for n, t in reading.others.items() if n in used or n.rpartition(".")[2] in scales}
    return used


def _expected_of_input(layer: QuantizedWeights, format: str) -> dict[str, Tensor]:
    """Scale and zero point of a calibrated input; in a graph also where it is clipped. An outer scale may be a divisor."""
    if is_compressed_tensors(format) and layer.input is not None and layer.input.has_outer_scale:
        return {f"{layer.name}.input_global_scale": 1 / layer.input_scale}
    found = {leaf: getattr(layer, leaf) for leaf in ("input_scale", "input_zero_point")}
    if format == "onnx" and layer.input_scale is not None:
        low, _ = layer.input.quant_range(8)
        if layer.input_zero_point is None:
            found["input_zero_point"] = torch.zeros(1, dtype=torch.int8)
        found["input_low"] = low * layer.input_scale if low > -128 else None
    return {f"{layer.name}.{leaf}": value for leaf, value in found.items() if value is not None}


def _differing(read: Tensor, expected: Tensor) -> int:
    expected = expected.detach().cpu()
    if read.numel() != expected.numel() or (read.dim() > 1 and read.shape != expected.shape):
        return max(read.numel(), expected.numel())
    return int((read.reshape(expected.shape) != expected.to(read.dtype)).sum())


def _as_read(layer: QuantLayer, matrix: Tensor, read: Tensor, format: str) -> Tensor:
    """As readers have it: those that put a model's experts together or read a plain folder, in the parameter's shape."""
    is_shaped = isinstance(layer, QuantExperts) and read.dim() == 3
    return layer.shaped(matrix.to(layer.weight.device)) if is_shaped or format == "dense" else matrix


def _unlike_training(module: QuantLayer, layer: QuantizedWeights) -> int:
    """Elements in which the codes do not stand for the weight that the forward multiplies with."""
    return _differing(layer.dequantize(module.weight.dtype).cpu(), module.quantized_weight())
