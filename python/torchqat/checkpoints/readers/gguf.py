"""GGUF files by the gguf package's reader, dequantizer and names, put back in the order of the model.

All that decides how a tensor is read, the architecture and the numbers of blocks and heads, is what the file says: llama.cpp
has nothing else.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf_types import Reader, dequantized
from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError, first_line
from torchqat.layers.prepared import quant_layers
from torchqat.model.gguf_header import check_gguf_header

# What each frequency of the rotary embedding is divided by, which no tensor of a model of transformers is called.
ROPE_FACTORS = "rope_freqs.weight"
_FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)
# llama.cpp rotates neighbours in models of these architectures, transformers the halves of a head.
_INTERLEAVED = ("llama",)
# A parameter of transformers' experts, and the tensors of a file that lie in it one after the other.
_OF_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def gguf_files(folder: Path) -> list[Path]:
    """The parts of the model, in order."""
    return sorted(folder.glob("*.gguf"))


@dataclass
class GgufFile:
    """What a model's GGUF files say; those after the first bring tensors alone."""

    files: list[Path]

    @cached_property
    def tensors(self) -> list[tuple[Path, Any]]:
        """Each with the file that it is in."""
        return [(file, tensor) for file, reader in self._readers for tensor in reader.tensors]

    @cached_property
    def architecture(self) -> str:
        return str(self._value("general.architecture"))

    def value(self, key: str) -> Any:
        """The value of ``key``, which the file calls ``<architecture>.<key>``.

        Raises:
            UserError: It has none.
        """
        return self._value(f"{self.architecture}.{key}")

    def names(self, of_model: list[str]) -> dict[str, str]:
        """For each tensor of the file that a model has as well, the model's name for it; of experts for two the same.

        Raises:
            UserError: The gguf package knows no such architecture.
        """
        known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if self.architecture not in known:
            raise UserError(
                f"{self.files[0]} must be of an architecture of llama.cpp's, but is of {self.architecture}."
            )
        table = gguf.get_tensor_name_map(known[self.architecture], int(self.value("block_count")))
        found = {table.get_name(name, try_suffixes=(".weight", ".bias")): name for name in of_model}
        for name in of_model:
            holder, _, leaf = name.rpartition(".")
            for part in _OF_EXPERTS.get(leaf, ()) if holder.endswith(".experts") else ():
                found[table.get_name(f"{holder}.{part}.weight", try_suffixes=(".weight",))] = name
        return {**found, ROPE_FACTORS: ROPE_FACTORS}

    @cached_property
    def scales(self) -> dict[str, Tensor]:
        """What llama.cpp multiplies products with a weight of NVFP4 by, one number or one for each expert: by the weight."""
        by_name = {tensor.name: tensor for _, tensor in self.tensors}
        scaled = {
            name: by_name.get(name.removesuffix("weight") + "scale") for name in by_name if name.endswith(".weight")
        }
        return {name: torch.from_numpy(scale.data.copy()) for name, scale in scaled.items() if scale is not None}

    def heads_of(self, name: str) -> int | None:
        """Heads of the tensor that the file calls ``name``, if its rows are those of rotated ones, in another order."""
        if self.architecture not in _INTERLEAVED:
            return None
        key = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}.get(name.split(".")[-2])
        return None if key is None else int(self.value(key))

    @cached_property
    def _readers(self) -> list[tuple[Path, gguf.GGUFReader]]:
        return [(file, _reader(file)) for file in self.files]

    def _value(self, key: str) -> Any:
        file, reader = self._readers[0]
        field = reader.get_field(key)
        if field is None:
            raise UserError(f"{file} must say its {key}, but does not.")
        return field.contents()


def read_gguf(folder: Path, model: nn.Module) -> Reading:
    """The files in ``folder``, which were exported from ``model``; every tensor in float32.

    Layers that training quantized are ``weights`` where the file has blocks of them; the rest are ``others``, as they are.

    Raises:
        UserError: A file is damaged, or has a tensor that the model does not have.
    """
    whole = GgufFile(gguf_files(folder))
    known = whole.names(list(model.state_dict()))
    quantized = {
        name if layer.kind == "Experts" else f"{name}.weight"
        for name, layer in quant_layers(model)
        if layer.weight_spec is not None
    }
    reading = Reading()
    for file, found in whole.tensors:
        if found.name.endswith(".scale") and found.name.removesuffix("scale") + "weight" in whole.scales:
            continue
        name = known.get(found.name)
        if name is None:
            raise UserError(f"{file} must hold tensors of the model alone, but has {found.name}.")
        values = in_model_order(_dense(file, found), whole.heads_of(found.name))
        if found.name in whole.scales:
            values = values * whole.scales[found.name].reshape(-1, *[1] * (values.dim() - 1))
        is_layer = name in quantized and found.tensor_type not in _FLOATS
        place, key = (reading.weights, name.removesuffix(".weight")) if is_layer else (reading.others, name)
        place[key] = torch.cat([place[key], values], dim=1) if key in place else values
    return reading


def _dense(file: Path, found: Any) -> Tensor:
    try:
        return torch.from_numpy(dequantized(found.data, found.tensor_type).copy()).float()
    except Exception as error:
        raise UserError(f"{file} must hold tensors that can be read, but {found.name}: {first_line(error)}.") from error


def in_model_order(rows: Tensor, heads: int | None) -> Tensor:
    """Row by row, what llama.cpp rotates as neighbours back to the halves of a head.

    Raises:
        UserError: There are not as many rows as that takes.
    """
    if heads is None:
        return rows
    if heads < 1 or len(rows) % (2 * heads):
        raise UserError(f"Rows of {heads} rotated heads must be pairs, the same number a head, but are {len(rows)}.")
    size = len(rows) // heads
    origin = [h * size + 2 * (i % (size // 2)) + i // (size // 2) for h in range(heads) for i in range(size)]
    return rows[origin]


def _reader(file: Path) -> gguf.GGUFReader:
    check_gguf_header(file)
    try:
        return Reader(file)
    except Exception as error:
        raise UserError(f"{file} must be a GGUF file, but does not load: {first_line(error)}.") from error
