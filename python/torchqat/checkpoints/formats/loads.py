"""Whether transformers' own loader takes a compressed-tensors checkpoint of a model: tried on what it does, without weights.

What it cannot do with an architecture would else show once there is a checkpoint, after a training that was paid for.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat.checkpoints.formats.tensors import built_empty
from torchqat.errors import UserError, first_line


def check_converts(model: nn.Module, configuration: str) -> None:
    """Whether transformers can set up how it reads a compressed-tensors checkpoint of ``model``.

    Architectures whose files lie in another order than their models have converters, which it rewrites for packed weights.

    Args:
        model: Of transformers or another, on which nothing is tried.
        configuration: Text of the checkpoint's ``config.json``.

    Raises:
        UserError: It cannot.
    """
    if not _is_of_transformers(model):
        return
    # Internals of transformers: of another version they may not be there, and then nothing is known.
    with suppress(ImportError, AttributeError, TypeError):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
        from transformers.utils.quantization_config import CompressedTensorsConfig

        settings = CompressedTensorsConfig(**json.loads(configuration))
        quantizer = CompressedTensorsHfQuantizer(settings, pre_quantized=True)
        quantizer.use_fp8_kernel = False  # as it is found to be where it loads
        try:
            get_model_conversion_mapping(model, hf_quantizer=quantizer)
        except ValueError as error:
            raise UserError(
                f"compressed-tensors cannot hold a {type(model).__name__}, because transformers fails to set up how it "
                f"would read packed weights of it ({first_line(error)[:120]}...); safetensors and dense can."
            ) from error


def loading_note(model: nn.Module, settings: dict) -> str:
    """What users of transformers should know who load the checkpoint; empty where its ``from_pretrained`` just does.

    Args:
        model: As of ``check_converts``.
        settings: The checkpoint's ``quantization_config``.
    """
    if not settings.get("config_groups") or not _is_of_transformers(model):
        return ""
    if not _initializes_weights(type(model), model.config, settings):
        return ""
    name = type(model).__name__
    if len(schemes(settings)) == 1:
        return (
            f"transformers loads this checkpoint of a {name} with quantization_config=CompressedTensorsConfig(dequantize="
            "True) alone: without it, it fails on layers that have packed weights."
        )
    return (
        f"transformers' from_pretrained fails on this checkpoint of a {name}, whose layers have several schemes: it would "
        "initialize layers that have packed weights. One scheme for all layers loads, with CompressedTensorsConfig("
        "dequantize=True)."
    )


def loads_made_dense_alone(folder: Path) -> bool:
    """Whether transformers has to be told to make the weights of the checkpoint in ``folder`` dense to load it at all."""
    import transformers

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = getattr(transformers, (settings.get("architectures") or [""])[0], None)
    groups = settings.get("quantization_config") or {}
    if architecture is None or "config_groups" not in groups or len(schemes(groups)) != 1:
        return False
    return _initializes_weights(architecture, transformers.AutoConfig.from_pretrained(folder), groups)


def schemes(settings: dict) -> list[dict]:
    """The config groups of a ``quantization_config`` that have a layer."""
    ignored = set(settings.get("ignore", []))
    return [group for group in settings["config_groups"].values() if not set(group["targets"]) <= ignored]


def _is_of_transformers(model: nn.Module) -> bool:
    return hasattr(model, "_init_weights") and hasattr(model, "config") and hasattr(model, "save_pretrained")


def _initializes_weights(architecture: type[nn.Module], config: Any, settings: dict) -> bool:
    """Whether ``architecture`` takes it for granted that linear layers have weights, as those with packed ones have not.

    Its own initialization is run, without memory: transformers does so for whatever a checkpoint lacks.
    """
    model = built_empty(architecture, config)
    if model is None:
        return False
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and not _is_ignored(name, settings.get("ignore", [])):
                del module.weight
        try:
            model.initialize_weights()
        except AttributeError as error:
            return "weight" in str(error)
    return False


def _is_ignored(name: str, ignored: list[str]) -> bool:
    return any(re.match(one[3:], name) if one.startswith("re:") else one == name for one in ignored)
