"""Quantized layers and what stays in floating point beside them, by the names that readers of a folder look for."""

import json
import re

from torch import Tensor, nn

from torchqat._library import CheckpointPlan, Format, LayerPlan, QuantizedWeights
from torchqat.model.disk_names import DiskNames

EXPERTS = r"re:.*\.experts\..*"


def layer_tensors(format: Format, layer: QuantizedWeights, names: DiskNames) -> dict[str, Tensor]:
    """The tensors of a quantized layer under its name on disk."""
    name = names.layer(layer.name)
    return {name + full.removeprefix(layer.name): tensor for full, tensor in format.tensors(layer).items()}


def documents_on_disk(
    model: nn.Module, plan: CheckpointPlan, format: Format, names: DiskNames, others: list[str] = ()
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
        others: Linear layers on disk that the model has no place for, and that stay in floating point.

    Raises:
        UserError: A layer cannot be quantized for how it lies on disk.
    """
    twice = format.name != "safetensors"  # our own folders are read by what the tensors are called
    layers = [
        _called(layer, name) for layer in plan.layers for name in _both(names.layer(layer.name), layer.name, twice)
    ]
    ignored = [name for module in plan.ignore for name in _both(_on_disk(names, module), module, twice)]
    documents = format.documents(CheckpointPlan(layers, [*ignored, *others], plan.kv_cache))
    patterns = _float_stacks(model, [layer.name for layer in layers])
    documents = {file: _with_patterns(format.name, text, patterns) for file, text in documents.items()}
    together = names.put_together()
    is_float = bool(together) and not any({layer.name, f"{layer.name}.weight"} & together for layer in plan.layers)
    if format.name == "compressed-tensors" and is_float:
        documents["config.json"] = _with_float_experts(documents["config.json"])
    return documents


def _both(on_disk: str, in_model: str, twice: bool) -> list[str]:
    return [on_disk, in_model] if twice and on_disk != in_model else [on_disk]


def _on_disk(names: DiskNames, module: str) -> str:
    parts = names.parts(f"{module}.weight")
    return parts[0].name.removesuffix(".weight") if len(parts) == 1 else module


def _called(layer: LayerPlan, name: str) -> LayerPlan:
    return LayerPlan(
        name, layer.in_features, layer.out_features, layer.weight, layer.input, type=layer.type, shares=layer.shares
    )


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
    if format == "compressed-tensors":
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
