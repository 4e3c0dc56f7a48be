"""``export``: a prepared model as a checkpoint that other programs load."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import (
    FileError,
    KvCacheSpec,
    fusion_problems,
    holds_kv_cache,
    save_safetensors,
    to_compressed_tensors,
)
from torchqat.convert import QuantizedWeights, convert
from torchqat.errors import UserError
from torchqat.files import pending_folder
from torchqat.kv_cache import SCALE_NAMES, caches
from torchqat.linear import STATE_NAMES
from torchqat.prepare import quant_layers

FORMATS = ("compressed-tensors",)

# State that prepare and Schedule add, and that no reader expects.
_TRAINING_STATE = (*STATE_NAMES, *SCALE_NAMES, "qat_step")


def export(
    model: nn.Module,
    output: str | Path,
    format: str = "compressed-tensors",
    tokenizer=None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write ``model`` to the folder ``output``, whole or not at all, and return it.

    The folder holds ``model.safetensors`` and, for a transformers model, ``config.json``, ``generation_config.json`` and the
    tokenizer's files. The codes are those of the training forward; nothing is quantized again.

    Args:
        model: A prepared model whose schedule, if it has one, has ended.
        output: A folder; replaced if it exists.
        format: ``compressed-tensors``.
        tokenizer: Saved beside the model when given.
        dtype: dtype of scales and of everything that is not quantized; by default the model's own.

    Raises:
        UserError: The format is unknown or cannot hold a layer, layers that engines fuse differ in scheme, a weight is not
            finite, or the folder cannot be written.
    """
    if format not in FORMATS:
        raise UserError(f"format must be {' or '.join(FORMATS)}, but is {format}.")
    weights = convert(model, dtype)
    ignore = _float_linears(model)
    try:
        problems = fusion_problems(weights, ignore)
        if problems:
            raise UserError(problems[0])
        checkpoint = to_compressed_tensors(weights, ignore, cache_spec(model))
    except ValueError as error:
        raise UserError(str(error)) from error
    tensors = {**float_tensors(model, weights, dtype), **checkpoint.tensors, **cache_scales(model)}
    output = Path(output)
    with pending_folder(output) as folder:
        write_config(model, folder, json.loads(checkpoint.quantization_config), weights, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        try:
            save_safetensors(str(folder / "model.safetensors"), tensors)
        except FileError as error:
            raise UserError(str(error).replace(str(folder), str(output))) from error
    return output


def cache_spec(model: nn.Module) -> KvCacheSpec | None:
    """How the model's cache of keys and values is quantized."""
    return next((cache.spec for _, cache in caches(model)), None)


def cache_scales(model: nn.Module) -> dict[str, Tensor]:
    """``k_scale`` and ``v_scale`` of each attention layer, as engines look for them; none for a cache that they set up."""
    tensors = {}
    for name, cache in caches(model):
        if holds_kv_cache(cache.spec):
            shape = (-1, 1, 1) if cache.spec.key.granularity == "head" else (1,)
            for leaf in SCALE_NAMES:
                tensors[f"{name}.{leaf}"] = getattr(cache, leaf).reshape(shape)
    return tensors


def float_tensors(
    model: nn.Module, weights: list[QuantizedWeights], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What the checkpoint holds unquantized: every other parameter and buffer once, tied ones under their first name."""
    quantized = {f"{layer.name}.weight" for layer in weights}
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in model.state_dict().items():
        if name in quantized or name.rsplit(".", 1)[-1] in _TRAINING_STATE:
            continue
        identity = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and identity in seen:
            continue
        seen.add(identity)
        tensors[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return tensors


def _float_linears(model: nn.Module) -> list[str]:
    quantized = {name for name, layer in quant_layers(model) if layer.weight_spec is not None}
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in quantized]


def write_config(
    model: nn.Module, folder: Path, quantization: dict, weights: list[QuantizedWeights], dtype: torch.dtype | None
) -> None:
    config: dict = {}
    if hasattr(model, "config") and hasattr(model.config, "save_pretrained"):
        model.config.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = dtype or next(model.parameters()).dtype
        config["dtype"] = str(stored).removeprefix("torch.")
        config["architectures"] = config.get("architectures") or [type(model).__name__]
        if any(layer.name.split(".")[-1] == "lm_head" for layer in weights):
            config["tie_word_embeddings"] = False
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
