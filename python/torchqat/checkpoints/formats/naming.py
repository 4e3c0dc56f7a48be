"""Quantized layers and what stays in floating point beside them, by the names that readers of a folder look for."""

import json
import re

from torch import Tensor, nn

from torchqat._library import CheckpointPlan, Format, LayerPlan, QuantizedWeights
from torchqat.checkpoints.formats.experts import check_experts_found, cut, expert_parts, planned
from torchqat.checkpoints.formats.loads import check_converts
from torchqat.errors import UserError
from torchqat.layers.experts import QuantExperts
from torchqat.model.disk_names import DiskNames
from torchqat.model.passed_over import passed_over

EXPERTS = r"re:.*\.experts\..*"


def is_compressed_tensors(format: str) -> bool:
    """Whether the format called so is one that the compressed-tensors library reads."""
    return format.startswith("compressed-tensors")


def layers_on_disk(
    model: nn.Module, format: Format, layer: QuantizedWeights, names: DiskNames
) -> list[QuantizedWeights]:
    """What a quantized layer is on disk: itself; of experts, a linear layer for each matrix that readers look for."""
    holder, _, leaf = layer.name.rpartition(".")
    if leaf not in model.get_submodule(holder)._parameters:
        return [layer]
    parts = expert_parts(model, names, layer.name, format)
    return list(cut(layer, parts)) if parts else [layer]


def layer_tensors(model: nn.Module, format: Format, layer: QuantizedWeights, names: DiskNames) -> dict[str, Tensor]:
    """The tensors of a quantized layer under its name on disk.

    Raises:
        UserError: The format cannot hold one of its numbers.
    """
    layers = layers_on_disk(model, format, layer, names)
    if layers != [layer]:
        return {name: tensor for part in layers for name, tensor in format.tensors(part).items()}
    try:
        tensors = format.tensors(layer)
    except ValueError as error:  # of numbers that the format cannot hold, which only they show
        raise UserError(str(error)) from error
    if format.name == "mxfp4":
        count = model.get_submodule(layer.name.rpartition(".")[0]).num_experts
        tensors = {name: tensor.unflatten(0, (count, -1)) for name, tensor in tensors.items()}
    name = names.layer(layer.name)
    return {name + full.removeprefix(layer.name): tensor for full, tensor in tensors.items()}


def documents_on_disk(
    model: nn.Module, plan: CheckpointPlan, format: Format, names: DiskNames, others: list[str] | None = None
) -> dict[str, str]:
    """The configuration of a checkpoint of ``model``.

    Engines look layers up by their names on disk, and transformers by those in its model; where the two differ both are
    there. Experts that are one tensor in the model stay in floating point unless they are planned, which a pattern says for
    all of them.

    Args:
        model: The planned model, prepared or not.
        plan: Its layers by their names in it.
        format: One that is a folder.
        names: Of the model.
        others: Linear layers on disk that the model has no place for, and that stay in floating point; when ``None``, those
            that lay beside it where it came from.

    Raises:
        UserError: A layer cannot be quantized for how it lies on disk.
    """
    if format.name == "dense":
        return {}
    compressed = is_compressed_tensors(format.name)
    if compressed:
        check_experts_found(model)
    twice = format.name != "safetensors"  # our own folders are read by what the tensors are called
    experts = {
        layer.name: planned(layer, expert_parts(model, names, layer.name, format))
        for layer in plan.layers
        if layer.type == QuantExperts.kind
    }
    layers = [
        one
        for layer in plan.layers
        for one in experts.get(layer.name)
        or [_called(layer, name) for name in _both(names.layer(layer.name), layer.name, twice)]
    ]
    ignored = [name for module in plan.ignore for name in _both(_on_disk(names, module), module, twice)]
    others = passed_over(model).linear_layers() if others is None else others
    documents = format.documents(CheckpointPlan(layers, [*ignored, *others], plan.kv_cache))
    patterns = _float_stacks(model, [layer.name for layer in (*layers, *plan.layers)])
    documents = {file: _with_patterns(format.name, text, patterns) for file, text in documents.items()}
    together = names.put_together()
    is_float = bool(together) and not any({layer.name, f"{layer.name}.weight"} & together for layer in plan.layers)
    if compressed and is_float:
        documents["config.json"] = _with_float_experts(documents["config.json"])
    elif compressed and any(experts.values()):
        _check_alike(plan, experts, together)
        documents["config.json"] = _with_experts(documents["config.json"])
    if compressed:
        check_converts(model, documents["config.json"])
    return documents


def _both(on_disk: str, in_model: str, twice: bool) -> list[str]:
    return [on_disk, in_model] if twice and on_disk != in_model else [on_disk]


def _on_disk(names: DiskNames, module: str) -> str:
    parts = names.parts(f"{module}.weight")
    return parts[0].name.removesuffix(".weight") if len(parts) == 1 else module


def _called(layer: LayerPlan, name: str) -> LayerPlan:
    """Under another name; the matrices of experts that are one tensor lie one below the other."""
    rows = layer.matrices * layer.out_features
    return LayerPlan(name, layer.in_features, rows, layer.weight, layer.input, type=layer.type, shares=layer.shares)


def _float_stacks(model: nn.Module, planned: list[str]) -> list[str]:
    """Regular expressions of the ends of modules that hold weights of three dimensions, all of them not planned."""
    convolutions = (nn.modules.conv._ConvNd,)
    holders = [
        name
        for name, module in model.named_modules()
        if name and not isinstance(module, convolutions) and any(_is_stack(p) for p in module._parameters.values())
    ]
    found: dict[str, None] = {}
    for holder in holders:
        for end in (re.escape(holder.rpartition(".")[2]), re.escape(holder.partition(".")[2])):
            if end and not any(re.search(rf"(^|\.){end}\.", name) for name in planned):
                found[end] = None
                break
    return list(found)


def _is_stack(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.dim() == 3 and parameter.shape[0] > 1


def _with_patterns(format: str, text: str, ends: list[str]) -> str:
    """``text``, a configuration, and that modules whose names end so, and what lies in them, stay in floating point."""
    if not ends:
        return text
    content = json.loads(text)
    plain = [end.replace("\\", "") for end in ends]
    if is_compressed_tensors(format):
        content["ignore"] += [rf"re:.*\.{end}\..*" for end in ends]
    elif format in ("gptq", "gptq_v2"):
        content.setdefault("dynamic", {}).update({rf"-:.*\.{end}(\..*)?$": {} for end in ends})
    elif format == "awq":
        content["modules_to_not_convert"] += [f".{end}" for end in plain]
    elif format == "modelopt":
        for entry in (content, content.get("quantization", {})):
            for key in ("ignore", "exclude_modules"):
                if key in entry:
                    entry[key] += [f"*.{end}*" for end in plain]
    return json.dumps(content)


def _check_alike(plan: CheckpointPlan, experts: dict[str, list[LayerPlan]], together: set[str]) -> None:
    """transformers reads all that it puts together while it loads, such as experts, by one scheme."""
    specs = {layer.name: layer.weight for layer in plan.layers if layer.name in experts}
    first = next(iter(specs))
    planned = {*specs, *(f"{layer.name}.weight" for layer in plan.layers)}
    left = sorted(together - planned)
    other = next((name for name, spec in specs.items() if spec != specs[first]), *left[:1] or [None])
    if other is not None:
        raise UserError(
            "compressed-tensors has one scheme for experts and all else that transformers puts together while it loads, "
            f"but {first} and {other} have two."
        )


def _with_experts(text: str) -> str:
    """``text`` with the group of the experts named by a pattern, where there are several groups."""
    content = json.loads(text)
    groups = content["config_groups"]
    for group in groups.values() if len(groups) > 1 else []:
        names = [target for target in group["targets"] if ".experts." not in target]
        if len(names) < len(group["targets"]):
            group["targets"] = [*names, EXPERTS]
    return json.dumps(content)


def _with_float_experts(text: str) -> str:
    """``text`` with a group for experts, which are all ignored.

    transformers, up to 5.24 at least, loses every floating-point tensor that it puts together unless what it takes for the
    experts' scheme is FP8, whose weights it passes on where they have no scale.
    """
    content = json.loads(text)
    groups = content["config_groups"]
    if all(group["weights"]["type"] == "float" for group in groups.values()):
        return text
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    groups[f"group_{len(groups)}"] = {
        "weights": fp8,
        "input_activations": None,
        "output_activations": None,
        "format": "float-quantized",
        "targets": [EXPERTS],
    }
    content["ignore"] = list(dict.fromkeys([*content["ignore"], EXPERTS]))
    return json.dumps(content)
