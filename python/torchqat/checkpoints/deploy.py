"""``pack`` and ``load``: quantized models that run here, at the memory and speed of their codes."""

import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import Checkpoint, FileError, QuantizedWeights, QuantSpec, load_checkpoint
from torchqat.checkpoints.convert import convert_layer
from torchqat.errors import UserError, first_line
from torchqat.files import as_path
from torchqat.layers.adapters import check_adapters
from torchqat.layers.experts import ExpertWeights
from torchqat.layers.packed_linear import PackedLinear
from torchqat.layers.prepared import quant_layers, require_module, require_prepared
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.stand_ins import is_layer, stand_in_of
from torchqat.layers.step import stop_counting
from torchqat.model.disk_sources import DiskSources
from torchqat.model.experts import expert_weights, matrix_of
from torchqat.model.weights import other_names


@torch.no_grad()
def pack(model: nn.Module) -> nn.Module:
    """Put ``PackedLinear`` in the place of every linear layer with an integer weight, in place, and return the model.

    What was trained is then evaluated at the memory and speed at which it is deployed, without another engine. Layers of
    other types and with other weights, and those whose weight another module shares, stay as they are. The model cannot
    be trained or exported afterwards, so that its parameters want no gradients. Packed layers run on a CPU: of a model on
    a GPU call ``.cpu()`` after.

    Args:
        model: A prepared model whose schedule, if it has one, has ended.

    Raises:
        UserError: The model is not prepared, adapters of peft act beside rounded weights, or a weight is not finite.
    """
    require_prepared(model)
    check_adapters(model)
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, layer in quant_layers(model):
        if layer.weight_spec is not None and _packs(layer, layer.weight_spec) and holders[id(layer.weight)] == 1:
            _replace(model, layer, PackedLinear(convert_layer(name, layer), layer.bias))
    stop_counting(model)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def load(model: nn.Module, folder: str | Path, packed: bool = False) -> nn.Module:
    """Fill a float model, in place, from a folder of the format ``safetensors``, and return it.

    Such folders are written by ``export(model, folder, format="safetensors")`` and by C++ programs
    (``qat::export_folder``), which read them, too; both get the same bits.

    Args:
        model: Of the architecture that was exported.
        folder: What was written.
        packed: Put ``PackedLinear`` in the place of linear layers with integer weights, rather than dequantized weights
            into them. Needed for layers whose input is quantized. Parameters then want no gradients.

    Raises:
        UserError: The folder is damaged, or it does not fit the model; nothing is changed then.
    """
    require_module(model)
    try:
        checkpoint = load_checkpoint(str(as_path("folder", folder)))
    except FileError as error:
        raise UserError(str(error)) from error
    layers, others = _in_model(model, folder, checkpoint)
    for name, weights in layers.items():
        _check_layer(model, folder, name, weights, packed)
    quantized = {*layers, *(f"{name}.weight" for name in layers)}
    quantized |= other_names(model, quantized)
    state = {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in quantized}
    _check_others(folder, state, others)
    _untie(model, [name for name in layers if _experts(model, name) is None], [state[name] for name in others])
    for name, tensor in others.items():
        state[name].data.copy_(tensor)
    for name, weights in layers.items():
        experts = _experts(model, name)
        if experts is not None:
            matrices = weights.dequantize(experts.weight.dtype)
            experts.oriented.data.copy_(matrices.view(experts.oriented.shape))
            continue
        layer = model.get_submodule(name)
        if packed and _packs(layer, weights.weight):
            _replace(model, layer, PackedLinear(weights, layer.bias))
        else:
            stand_in_of(layer)(layer, None, None).set_master(weights.dequantize(layer.weight.dtype))
    return model.requires_grad_(False) if packed else model


def _in_model(
    model: nn.Module, folder: str | Path, checkpoint: Checkpoint
) -> tuple[dict[str, QuantizedWeights], dict[str, Tensor]]:
    """Quantized layers, and every other tensor, by their names in ``model``; what is one with others there is dense."""
    quantized = {f"{weights.name}.weight": weights for weights in checkpoint.layers}
    sources = DiskSources(model, [*quantized, *checkpoint.others])
    layers: dict[str, QuantizedWeights] = {}
    unexpected = [name for name in sources.unexpected if not sources.ignored(name)]
    others = {sources.found[n]: checkpoint.others[n] for n in unexpected if n in checkpoint.others}
    layers |= {sources.found[n].removesuffix(".weight"): quantized[n] for n in unexpected if n in quantized}

    def read(name: str) -> Tensor:
        return quantized[name].dequantize() if name in quantized else checkpoint.others[name]

    for source in sources.sources.values():
        if source.plain and source.names[0] in quantized:
            layers[source.target.removesuffix(".weight")] = quantized[source.names[0]]
            continue
        try:
            others |= source.load(model, read)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{folder}: {source.target} could not be put together: {first_line(error)}") from error
    return layers, others


def _untie(model: nn.Module, layers: list[str], floats: list[Tensor]) -> None:
    """A weight of its own for each layer that is quantized where what shares its weight, an embedding, is not."""
    theirs = {id(tensor) for tensor in floats}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name in layers:
        layer = model.get_submodule(name)
        if id(layer.weight) in theirs:
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
            if layer is head:
                model.config.tie_word_embeddings = False


def _packs(layer: nn.Module, spec: QuantSpec) -> bool:
    """Whether a packed form exists of a layer whose weight is quantized so."""
    return isinstance(layer, nn.Linear) and spec.takes_widths


def _replace(model: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """``other`` in the place of ``layer``, under each of its names."""
    for parent in list(model.modules()):
        for leaf, child in parent._modules.items():
            if child is layer:
                setattr(parent, leaf, other)


def _experts(model: nn.Module, name: str) -> ExpertWeights | None:
    """The parameter of a mixture's experts that is called so, if one is."""
    parent, _, leaf = name.rpartition(".")
    try:
        holder = model.get_submodule(parent)
    except AttributeError:
        return None
    return expert_weights(holder, leaf) if holder._parameters.get(leaf) is not None else None


def _check_layer(model: nn.Module, folder: str | Path, name: str, weights: QuantizedWeights, packed: bool) -> None:
    experts = _experts(model, name)
    if experts is not None:
        *sizes, cols = experts.oriented.shape
        _check_shape(folder, name, weights, math.prod(sizes), cols, experts.weight)
        return
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise UserError(f"{folder}: {name} is a quantized layer of the checkpoint, but none of the model.") from None
    if not is_layer(layer) or isinstance(layer, QuantLayer):
        raise UserError(f"{folder}: {name} must be a layer of torch.nn to be loaded, but is a {type(layer).__name__}.")
    _check_shape(folder, name, weights, *matrix_of(model, name).shape, layer.weight)
    if weights.input is not None and not (packed and isinstance(layer, nn.Linear)):
        raise UserError(
            f"{folder}: the input of {name} is quantized, which a {type(layer).__name__} cannot do; load with packed=True."
        )


def _check_shape(
    folder: str | Path, name: str, weights: QuantizedWeights, rows: int, cols: int, weight: Tensor
) -> None:
    if tuple(weights.codes.shape) != (rows, cols):
        raise UserError(
            f"{folder}: {name} has {list(weights.codes.shape)} codes, but its weight is {list(weight.shape)} in the model."
        )


def _check_others(folder: str | Path, state: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    for name, tensor in others.items():
        if name not in state:
            raise UserError(f"{folder}: {name} is in the checkpoint, but not in the model.")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{folder}: {name} is {list(tensor.shape)} in the checkpoint, but {list(state[name].shape)} in the model."
            )
    found = {state[name].data_ptr() for name in others}
    # Of tensors that are tied, one is there.
    missing = [name for name, t in state.items() if name not in others and t.data_ptr() not in found]
    if missing:
        raise UserError(f"{folder}: {missing[0]} is in the model, but not in the checkpoint.")
