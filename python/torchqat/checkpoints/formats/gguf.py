"""GGUF files: llama.cpp's container, around blocks that hold the trained codes (``qat/checkpoint/formats/gguf.h``)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, QuantizedWeights, find_format
from torchqat.checkpoints.formats.gguf_architectures import architecture_of, check_types
from torchqat.checkpoints.formats.gguf_types import file_type, layer_type, shape_in_bytes
from torchqat.checkpoints.formats.gguf_vocabulary import add_vocabulary
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.hyperparameters import add_hyperparameters, context_of
from torchqat.checkpoints.formats.llama_cpp.rope import rope_tensors
from torchqat.checkpoints.formats.llama_cpp.tensors import (
    ExpertRows,
    NameMap,
    RowOrder,
    expert_rows,
    is_precise,
    oriented,
    outside,
)
from torchqat.checkpoints.formats.ollama import FILE as MODELFILE
from torchqat.checkpoints.formats.ollama import modelfile
from torchqat.checkpoints.formats.shards import shard_bytes
from torchqat.checkpoints.formats.tensors import float_tensors
from torchqat.errors import UserError
from torchqat.files import write_text

_EMBEDDING_TYPES = ("f16", "q8_0")
_Types = gguf.GGMLQuantizationType


def write_gguf(
    model: nn.Module,
    layers: Iterable[QuantizedWeights],
    plan: CheckpointPlan | None,
    path: Path,
    tokenizer=None,
    embeddings: str = "f16",
    max_shard_size: int | str = "5GB",
) -> None:
    """Write ``model`` to ``path``, tensor by tensor; past ``max_shard_size`` in files ``<stem>-00001-of-0000N.gguf``.

    Trained layers become blocks of their type (Q4_K and so on), their codes unchanged; other matrices F16, vectors F32.

    Args:
        model: A causal language model of transformers.
        layers: Its quantized layers, in the order of ``plan``; none for a float model.
        plan: Names and shapes of those; ``None`` for a float model.
        path: The file.
        tokenizer: A fast tokenizer; without one the file has no vocabulary.
        embeddings: ``f16`` or ``q8_0``, of the token embedding and the output head.
        max_shard_size: A size such as ``5GB``.

    Raises:
        UserError: llama.cpp knows no such architecture, rotary embedding or tokenizer.
    """
    if embeddings not in _EMBEDDING_TYPES:
        raise UserError(f"embeddings must be f16 or q8_0, but is {embeddings}.")
    architecture = architecture_of(model)
    check_types(model, plan.layers if plan is not None else [])
    entries = list(_entries(model, architecture, plan, embeddings))
    limit, total = shard_bytes(max_shard_size), sum(entry.nbytes for entry in entries)
    writer = gguf.GGUFWriter(path, architecture.gguf, split_max_size=limit if total > limit else 0)
    writer.add_name(Path(model.config.name_or_path or architecture.gguf).name)
    writer.add_file_type(file_type(plan))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_hyperparameters(writer, model, architecture)
    add_vocabulary(writer, tokenizer, model.get_input_embeddings().weight.shape[0])
    for entry in entries:
        # The kind says all, so that the type of the numbers is not asked for.
        writer.add_tensor_info(entry.file_name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    order, layers, layer = RowOrder(model, architecture), iter(layers), None
    for entry in entries:
        if entry.tensor is not None:
            data = encoded(order.to_file(entry.name, entry.tensor.detach()), entry.kind, entry.offset)
        else:
            if layer is None or layer.name != entry.layer:
                layer = next(layers)
            blocks = entry.blocks(layer)
            data = (order.to_file(entry.name, blocks) if entry.kind != _Types.F32 else blocks).numpy()
        writer.write_tensor_data(data)
    writer.close()


def write_modelfile(model: nn.Module, path: Path, tokenizer=None) -> None:
    """Ollama's Modelfile beside the file at ``path``, where that has a vocabulary and is not in parts."""
    if tokenizer is None or not path.is_file():
        return
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    context = context_of(model.config.get_text_config(), architecture_of(model))
    text = modelfile(path.name, context, tokenizer, ends if isinstance(ends, list) else [ends])
    write_text(path.with_name(MODELFILE), text)


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file: one that stays unquantized, or (``tensor`` is ``None``) the blocks of ``layer``.

    Of experts it has ``rows_of_each`` matrix.
    """

    name: str
    file_name: str
    kind: int  # gguf.GGMLQuantizationType, or one that the gguf package does not know (gguf_types.py)
    shape: tuple[int, ...]
    tensor: Tensor | None = None
    offset: float = 0.0
    layer: str = ""
    rows_of_each: ExpertRows | None = None

    def blocks(self, layer: QuantizedWeights) -> Tensor:
        tensors = find_format("gguf").tensors
        if self.rows_of_each is None:
            return tensors(layer)[self.name]
        leaf = self.name.rpartition(".")[2]
        part, all_rows = self.rows_of_each, layer.codes.shape[0]
        size = all_rows // self.shape[0]
        matrices = [layer.rows("expert", first, first + size) for first in range(0, all_rows, size)]
        found = [tensors(matrix)[f"expert.{leaf}"] for matrix in matrices]
        return torch.cat(found) if leaf == "scale" else torch.stack([rows[part.rows] for rows in found])

    @property
    def nbytes(self) -> int:
        return math.prod(shape_in_bytes(self.shape, self.kind))


def _entries(
    model: nn.Module, architecture: Architecture, plan: CheckpointPlan | None, embeddings: str
) -> Iterator[_Entry]:
    names = NameMap(model, architecture)
    beside = outside(model)
    for name, factors in rope_tensors(model, architecture).items():
        yield _Entry(name, name, _Types.F32, tuple(factors.shape), factors)
    for name, tensor in float_tensors(model, plan):
        if not name.startswith(beside):
            yield from _float_entries(oriented(model, name, tensor), name, names, architecture, embeddings)
    for layer in plan.layers if plan is not None else []:
        kind, parts = layer_type(layer), expert_rows(layer.name, layer.out_features, architecture)
        shapes = [(layer.matrices, part.count, layer.in_features) for part in parts]
        for part, shape in zip(parts, shapes, strict=True):
            yield from _with_scale(
                _Entry(part.name, names[part.name], kind, shape, layer=layer.name, rows_of_each=part)
            )
        if not parts:
            name, shape = f"{layer.name}.weight", (layer.out_features, layer.in_features)
            yield from _with_scale(_Entry(name, names[name], kind, shape, layer=layer.name))


def _float_entries(
    tensor: Tensor, name: str, names: NameMap, architecture: Architecture, embeddings: str
) -> Iterator[_Entry]:
    """One that stays unquantized; of experts, one for each kind of their matrices."""
    parts = expert_rows(name, tensor.shape[1], architecture) if tensor.dim() > 1 else []
    for part in parts:
        rows = tensor[:, part.rows]
        kind = _Types.F32 if tensor.dim() == 2 else _Types.F16
        yield _Entry(part.name, names[part.name], kind, tuple(rows.shape), rows)
    if not parts:
        offset = architecture.norm_offset if name.endswith("norm.weight") else 0.0
        file_name = names[name]
        kind = _float_type(name, file_name, tensor, embeddings)
        yield _Entry(name, file_name, kind, tuple(tensor.shape), tensor, offset)


def _with_scale(entry: _Entry) -> Iterator[_Entry]:
    """Beside NVFP4 blocks the number that the product with them is multiplied by, one for each expert."""
    yield entry
    if entry.kind == _Types.NVFP4:
        name, file_name = (text.removesuffix("weight") + "scale" for text in (entry.name, entry.file_name))
        shape = (entry.shape[0] if entry.rows_of_each else 1,)
        yield replace(entry, name=name, file_name=file_name, kind=_Types.F32, shape=shape)


def _float_type(name: str, file_name: str, tensor: Tensor, embeddings: str) -> gguf.GGMLQuantizationType:
    """Vectors must be F32; the embedding and the head are as asked, other matrices F16."""
    if tensor.dim() == 1 or is_precise(name):
        return _Types.F32
    ends = file_name in ("token_embd.weight", "output.weight")
    return _Types.Q8_0 if ends and embeddings == "q8_0" and tensor.shape[-1] % 32 == 0 else _Types.F16


def encoded(tensor: Tensor, kind: gguf.GGMLQuantizationType, offset: float = 0.0) -> np.ndarray:
    """A tensor that stays unquantized, as the file has it."""
    values = tensor.float().cpu() + offset if offset else tensor.float().cpu()
    if kind == _Types.F16:
        return values.half().numpy()
    if kind == _Types.F32:
        return np.ascontiguousarray(values.numpy())
    return gguf.quants.quantize(values.numpy(), kind)
