"""Folders as Hugging Face lays them out: a configuration, the model's own files, safetensors."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, Format, QuantizedWeights
from torchqat.checkpoints.formats.configuration import save_configuration
from torchqat.checkpoints.formats.dense import Dense, dense_tensors
from torchqat.checkpoints.formats.mlx import keys_of_mlx
from torchqat.checkpoints.formats.naming import documents_on_disk, layer_tensors
from torchqat.checkpoints.formats.shards import ShardWriter
from torchqat.checkpoints.formats.tensors import cache_scales, float_tensors
from torchqat.model.disk_names import DiskNames
from torchqat.model.passed_over import passed_over
from torchqat.precision import dtype_word


def write_folder(
    model: nn.Module,
    layers: Iterable[QuantizedWeights],
    plan: CheckpointPlan,
    format: Format,
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
) -> None:
    """The checkpoint of ``model`` into ``folder``, as ``save_pretrained`` would name it, in the memory of one file."""
    names = DiskNames(model)
    documents = documents_on_disk(model, plan, format, names)
    shards = ShardWriter(folder, max_shard_size)
    for tensors in folder_tensors(model, layers, plan, format, names, dtype):
        shards.add(tensors)
    shards.finish()
    write_configuration(model, folder, plan, documents, dtype)


def folder_tensors(
    model: nn.Module,
    layers: Iterable[QuantizedWeights],
    plan: CheckpointPlan,
    format: Format,
    names: DiskNames,
    dtype: torch.dtype | None,
) -> Iterator[dict[str, Tensor]]:
    """All that the files of a checkpoint hold, by the names there; what belongs together, such as a layer, at a time."""
    floats, is_dense = float_tensors(model, plan, dtype), format.name == Dense.name
    for name, tensor in names.on_disk(chain(floats, dense_tensors(model, layers, dtype)) if is_dense else floats):
        yield {name: tensor}
    yield {names.renamed(name): scale for name, scale in cache_scales(model, format.name).items()}
    for layer in () if is_dense else layers:
        yield layer_tensors(model, format, layer, names)
    for name, tensor in passed_over(model).tensors():
        yield {name: tensor}


def write_configuration(
    model: nn.Module, folder: Path, plan: CheckpointPlan, documents: dict[str, str], dtype: torch.dtype | None
) -> None:
    """``config.json`` with its ``quantization_config``, ``generation_config.json``, and the files that a format adds."""
    config: dict = {}
    save_configuration(model, folder)
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored = dtype or next(model.parameters()).dtype
        config["dtype"] = dtype_word(stored)
        config["architectures"] = _architectures(model, config.get("architectures"))
        if any(layer.name.split(".")[-1] == "lm_head" for layer in plan.layers):
            config["tie_word_embeddings"] = False
    for file, text in documents.items():
        content = json.loads(text)
        if file == "config.json":
            own = keys_of_mlx(config, content) if "quant_method" not in content else {}
            content = {**config, **own, "quantization_config": content}
        _write(folder / file, content)
    if "config.json" not in documents:
        _write(folder / "config.json", config)


def _architectures(model: nn.Module, known: list[str] | None) -> list[str]:
    """What loads the checkpoint: the model's class, which is not that of the folder where a head was put on a base model."""
    import transformers

    name = type(model).__name__
    return [name] if hasattr(transformers, name) else known or [name]


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
