"""GGUF files: llama.cpp's container, around blocks that hold the trained codes (``qat/checkpoint/formats/gguf.h``)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import torch
from torch import Tensor, nn

from torchqat._library import CheckpointPlan, LayerPlan, QuantizedWeights, find_format
from torchqat.checkpoints.formats.gguf_architectures import POOLING, architecture_of, check_pooling, check_types
from torchqat.checkpoints.formats.gguf_types import check_ternary, file_type, layer_type, shape_in_bytes
from torchqat.checkpoints.formats.gguf_vocabulary import add_vocabulary
from torchqat.checkpoints.formats.llama_cpp.architecture import Architecture
from torchqat.checkpoints.formats.llama_cpp.hyperparameters import add_hyperparameters, context_of
from torchqat.checkpoints.formats.llama_cpp.rope import rope_tensors
from torchqat.checkpoints.formats.llama_cpp.tensor_files import TensorFiles
from torchqat.checkpoints.formats.llama_cpp.tensors import (
    ExpertRows,
    NameMap,
    RowOrder,
    expert_rows,
    is_precise,
    oriented,
    outside,
)
from torchqat.checkpoints.formats.llama_cpp.ternary import tq1_0_blocks
from torchqat.checkpoints.formats.numbers import held_in
from torchqat.checkpoints.formats.ollama import FILE as MODELFILE
from torchqat.checkpoints.formats.ollama import modelfile
from torchqat.checkpoints.formats.repeated_head import repeated_head
from torchqat.checkpoints.formats.shards import shard_bytes
from torchqat.checkpoints.formats.tensors import float_tensors
from torchqat.errors import UserError
from torchqat.files import write_text

_EMBEDDING_TYPES = ("f16", "q8_0")
_Types = gguf.GGMLQuantizationType
# What 127 of the largest scale, a float16, make.
_LARGEST_Q8_0 = 127 * torch.finfo(torch.float16).max


def write_gguf(
    model: nn.Module,
    layers: Iterable[QuantizedWeights],
    plan: CheckpointPlan | None,
    path: Path,
    tokenizer=None,
    **options: Any,
) -> None:
    """Write ``model`` to ``path``, tensor by tensor; past ``max_shard_size`` in files ``<stem>-00001-of-0000N.gguf``.

    Trained layers become blocks of their type (Q4_K and so on), their codes unchanged; other matrices F16, vectors F32. A
    head that is the token embedding once more, number by number, is left out: llama.cpp then multiplies with that.

    Args:
        model: A causal language model of transformers, or an encoder of texts.
        layers: Its quantized layers, in the order of ``plan``; none for a float model.
        plan, path, tokenizer: As of ``GgufWriter``.
        options: ``embeddings``, ``max_shard_size``, ``pooling`` and ``ternary``, as of ``GgufWriter``.

    Raises:
        UserError: As ``GgufWriter``.
    """
    writer = GgufWriter(model, plan, path, tokenizer, **options)
    for name, tensor in float_tensors(model, plan):
        writer.add_float(name, tensor)
    for layer in layers:
        writer.add_layer(layer)
    writer.finish()


def size_beside_layers(model: nn.Module, plan: CheckpointPlan) -> tuple[int, int]:
    """The elements and the bits of what a file of ``model`` has beside the layers of ``plan``.

    Raises:
        UserError: As ``GgufWriter``.
    """
    architecture = architecture_of(model)
    made = _Entries(model, architecture)
    entries = [entry for name, tensor in float_tensors(model, plan) for entry in made.of_float(name, tensor)]
    ropes = [tuple(factors.shape) for factors in rope_tensors(model, architecture).values()]
    entries += [_Entry("", "", _Types.F32, shape) for shape in ropes]
    return sum(math.prod(entry.shape) for entry in entries), 8 * sum(entry.nbytes for entry in entries)


class GgufWriter:
    """A GGUF file of which the plan is enough to begin it; its tensors come in any order.

    Args:
        model: A causal language model of transformers, or an encoder of texts; it may be an outline, without weights.
        plan: Names and shapes of its quantized layers; ``None`` for a float model.
        path: The file.
        tokenizer: A fast tokenizer; without one the file has no vocabulary.
        embeddings: ``f16`` or ``q8_0``, of the token embedding and the output head.
        max_shard_size: A size such as ``5GB``; files that would be larger come in parts.
        pooling: How an encoder's hidden states become a vector: ``mean``, ``cls`` or ``last``.
        ternary: ``tq2_0`` or ``tq1_0``, of layers of -1, 0 and 1 in groups of a multiple of 256.

    Attributes:
        bytes: Of all tensors.
        floats: Names of what stays unquantized and is in the file.
        left_out: The head, where it is the token embedding once more and has no place of its own.

    Raises:
        UserError: llama.cpp knows no such architecture, rotary embedding or tokenizer.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: CheckpointPlan | None,
        path: Path,
        tokenizer=None,
        embeddings: str = "f16",
        max_shard_size: int | str = "5GB",
        pooling: str = "",
        ternary: str = "tq2_0",
    ):
        if embeddings not in _EMBEDDING_TYPES:
            raise UserError(f"embeddings must be f16 or q8_0, but is {embeddings}.")
        architecture = architecture_of(model)
        check_types(model, plan.layers if plan is not None else [])
        check_pooling(model, pooling)
        check_ternary(plan, ternary)
        self._entries = _Entries(model, architecture, embeddings, ternary)
        self._order = RowOrder(model, architecture)
        self.left_out = repeated_head(model)
        ropes = rope_tensors(model, architecture)
        entries = [_Entry(name, name, _Types.F32, tuple(factors.shape), factors) for name, factors in ropes.items()]
        self.floats: list[str] = []
        for name, tensor in float_tensors(model, plan):
            if found := list(self._entries.of_float(name, tensor)):
                self.floats.append(name)
                entries += found
        self._of_layer: dict[str, list[_Entry]] = {}
        for layer in plan.layers if plan is not None else []:
            if layer.name != self.left_out:
                self._of_layer[layer.name] = list(self._entries.of_layer(layer))
                entries += self._of_layer[layer.name]
        self.bytes = sum(entry.nbytes for entry in entries)
        limit = shard_bytes(max_shard_size)
        writer = gguf.GGUFWriter(path, architecture.gguf, split_max_size=limit if self.bytes > limit else 0)
        writer.add_name(Path(model.config.name_or_path or architecture.gguf).name)
        writer.add_file_type(file_type(plan, ternary))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_hyperparameters(writer, model, architecture)
        if pooling:
            writer.add_pooling_type(POOLING[pooling])
        add_vocabulary(writer, tokenizer, model.get_input_embeddings().weight.shape[0])
        for entry in entries:
            # The kind says all, so that the type of the numbers is not asked for.
            writer.add_tensor_info(entry.file_name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.kind)
        self._files = TensorFiles(writer)
        for name, factors in ropes.items():
            self._files.put(name, encoded(name, factors, _Types.F32))

    def add_float(self, name: str, tensor: Tensor) -> None:
        """What stays unquantized, by its name in the model."""
        for entry in self._entries.of_float(name, tensor):
            rows = self._order.to_file(entry.name, entry.tensor.detach())
            self._files.put(entry.file_name, encoded(entry.name, rows, entry.kind, entry.offset))

    def add_layer(self, layer: QuantizedWeights) -> None:
        """A layer of the plan."""
        for entry in self._of_layer[layer.name] if layer.name != self.left_out else ():
            blocks = entry.blocks(layer)
            rows = self._order.to_file(entry.name, blocks) if entry.kind != _Types.F32 else blocks
            self._files.put(entry.file_name, rows.numpy())

    def flush(self) -> None:
        """Let others read what is there so far."""
        self._files.flush()

    def finish(self) -> None:
        """End the file, which has all of its tensors."""
        self._files.close()


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
    """A tensor of the file: one that stays unquantized, or (``tensor`` is ``None``) the blocks of a layer.

    Of experts it has ``rows_of_each`` matrix.
    """

    name: str
    file_name: str
    kind: int  # gguf.GGMLQuantizationType, or one that the gguf package does not know (gguf_types.py)
    shape: tuple[int, ...]
    tensor: Tensor | None = None
    offset: float = 0.0
    rows_of_each: ExpertRows | None = None

    def blocks(self, layer: QuantizedWeights) -> Tensor:
        tensors = _ternary_tensors if self.kind == _Types.TQ1_0 else find_format("gguf").tensors
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


def _ternary_tensors(layer: QuantizedWeights) -> dict[str, Tensor]:
    return {f"{layer.name}.weight": tq1_0_blocks(layer)}


class _Entries:
    """The tensors of a file that those of ``model`` become."""

    def __init__(self, model: nn.Module, architecture: Architecture, embeddings: str = "f16", ternary: str = "tq2_0"):
        self._model, self._architecture = model, architecture
        self._embeddings, self._ternary = embeddings, ternary
        self._names, self._beside = NameMap(model, architecture), outside(model, architecture)

    def of_layer(self, layer: LayerPlan) -> Iterator[_Entry]:
        """A quantized one; of experts, one for each kind of their matrices."""
        kind, parts = layer_type(layer, self._ternary), expert_rows(layer.name, layer.out_features, self._architecture)
        for part in parts:
            shape = (layer.matrices, part.count, layer.in_features)
            yield from _with_scale(_Entry(part.name, self._names[part.name], kind, shape, rows_of_each=part))
        if not parts:
            name, shape = f"{layer.name}.weight", (layer.out_features, layer.in_features)
            yield from _with_scale(_Entry(name, self._names[name], kind, shape))

    def of_float(self, name: str, tensor: Tensor) -> Iterator[_Entry]:
        """One that stays unquantized; nothing where it is no part of the language model."""
        if name.startswith(self._beside):
            return
        tensor = oriented(self._model, name, tensor)
        parts = expert_rows(name, tensor.shape[1], self._architecture) if tensor.dim() > 1 else []
        for part in parts:
            rows = tensor[:, part.rows]
            kind = _Types.F32 if tensor.dim() == 2 else _Types.F16
            yield _Entry(part.name, self._names[part.name], kind, tuple(rows.shape), rows)
        if not parts:
            offset = self._architecture.norm_offset if name.endswith("norm.weight") else 0.0
            file_name = self._names[name]
            kind = _float_type(name, file_name, tensor, self._embeddings)
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


def encoded(name: str, tensor: Tensor, kind: gguf.GGMLQuantizationType, offset: float = 0.0) -> np.ndarray:
    """A tensor that stays unquantized, as the file has it.

    Raises:
        UserError: One of its numbers is beyond float16.
    """
    values = tensor.float().cpu() + offset if offset else tensor.float().cpu()
    if kind == _Types.F16:
        return held_in(name, values, torch.float16).numpy()
    if kind == _Types.F32:
        return np.ascontiguousarray(values.numpy())
    held_in(name, values, torch.float16, _LARGEST_Q8_0)
    return gguf.quants.quantize(values.numpy(), kind)
