"""GGUF files by the gguf package's reader, dequantizer and names, put back in the order of the model.

All that decides how a tensor is read, the architecture and the numbers of blocks and heads, is what the file says: llama.cpp
has nothing else.
"""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

from torchqat.checkpoints.readers.gguf_layout import INTERLEAVED, Layout, Pieces, parts_of, text_name
from torchqat.checkpoints.readers.gguf_types import Reader, dequantized
from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError, first_line
from torchqat.layers.prepared import quant_layers, weight_name
from torchqat.model.gguf_header import check_gguf_header

# What frequencies of the rotary embedding are divided by, which no tensor of a model of transformers is called.
ROPE_FACTORS = "rope_freqs.weight"
LONG_ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
_FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)


def gguf_files(folder: Path) -> list[Path]:
    """The parts of the model, in order; of one part all of them, and of a file that is whole itself.

    Raises:
        UserError: There are several, which are not parts of one.
    """
    if folder.is_file():
        part = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", folder.name)
        return sorted(folder.parent.glob(f"{part[1]}-?????-of-{part[2]}.gguf")) if part else [folder]
    found = sorted(folder.glob("*.gguf"))
    if len({re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"\1", file.name) for file in found}) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{folder} must hold one model to be read as a folder, but has {names}: name one of them.")
    return found


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

    def optional(self, key: str) -> Any:
        """As ``value``, or ``None`` where the file does not say it."""
        field = self._readers[0][1].get_field(f"{self.architecture}.{key}")
        return None if field is None else field.contents()

    def of_tokenizer(self, key: str) -> Any:
        """The value of ``tokenizer.<key>``, or ``None`` where the file does not say it."""
        field = self._readers[0][1].get_field(f"tokenizer.{key}")
        return None if field is None else field.contents()

    def names(self, of_model: list[str]) -> dict[str, str]:
        """For each tensor of the file that a model has as well, the model's name for it; of experts for two the same.

        Of a model that also reads images or sounds, those of its language model.

        Raises:
            UserError: The gguf package knows no such architecture.
        """
        known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        if self.architecture not in known:
            raise UserError(
                f"{self.files[0]} must be of an architecture of llama.cpp's, but is of {self.architecture}."
            )
        table = gguf.get_tensor_name_map(known[self.architecture], int(self.value("block_count")))
        found = {}
        for name in of_model:
            for part in parts_of(text_name(name)):
                if (of_file := table.get_name(part, try_suffixes=(".weight", ".bias"))) is not None:
                    found[of_file] = name
        return {**found, **{name: name for name in (ROPE_FACTORS, *LONG_ROPE_FACTORS)}}

    @cached_property
    def has_head(self) -> bool:
        """Whether the head has a tensor of its own; llama.cpp multiplies with the token embedding where not."""
        return any(tensor.name == "output.weight" for _, tensor in self.tensors)

    @cached_property
    def scales(self) -> dict[str, Tensor]:
        """What llama.cpp multiplies products with a weight of NVFP4 by, one number or one for each expert: by the weight."""
        by_name = {tensor.name: tensor for _, tensor in self.tensors}
        scaled = {
            name: by_name.get(name.removesuffix("weight") + "scale") for name in by_name if name.endswith(".weight")
        }
        return {name: torch.from_numpy(scale.data.copy()) for name, scale in scaled.items() if scale is not None}

    @cached_property
    def layout(self) -> Layout:
        """How tensors of a model lie in the file."""
        if self.architecture not in INTERLEAVED and self.architecture != "falcon":
            return Layout(self.architecture)
        heads, kv_heads = (int(self.value(f"attention.head_count{leaf}")) for leaf in ("", "_kv"))
        return Layout(self.architecture, heads, kv_heads)

    @cached_property
    def _readers(self) -> list[tuple[Path, gguf.GGUFReader]]:
        return [(file, _reader(file)) for file in self.files]

    def forget(self) -> None:
        """What was read leaves memory; it is read from the files again where it is asked for."""
        for _, reader in self._readers:
            mapped = reader.data.base
            if hasattr(mmap, "MADV_DONTNEED") and isinstance(mapped, mmap.mmap):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _value(self, key: str) -> Any:
        file, reader = self._readers[0]
        field = reader.get_field(key)
        if field is None:
            raise UserError(f"{file} must say its {key}, but does not.")
        return field.contents()


def read_gguf(folder: Path, model: nn.Module) -> Reading:
    """The files in ``folder``, which were exported from ``model``; every tensor in float32.

    Layers that training quantized, of a model that is not prepared all of them, are ``weights`` where the file has blocks of
    them; the rest are ``others``, as they are.

    Raises:
        UserError: A file is damaged, or has a tensor that the model does not have.
    """
    whole = GgufFile(gguf_files(folder))
    quantized = {weight_name(*layer): layer[0] for layer in quant_layers(model) if layer[1].weight_spec is not None}
    prepared = next(iter(quant_layers(model)), None) is not None
    reading = Reading()
    for name, values, in_blocks in tensors_of_model(whole, list(model.state_dict())):
        if in_blocks and (name in quantized or not prepared):
            reading.weights[name.removesuffix(".weight")] = values
        else:
            reading.others[name] = values
    head, table = (quantized.get(name) for name in _ends(model))
    if not whole.has_head and head is not None and table in reading.weights:
        reading.weights[head] = reading.weights[table]  # llama.cpp multiplies with the embedding then
    return reading


def tensors_of_model(whole: GgufFile, names: list[str], inside: str = "") -> Iterator[tuple[str, Tensor, bool]]:
    """Each tensor of a model of ``names`` that the file has: its name, float32, and whether it comes of quantized blocks.

    Only those whose names begin with ``inside``.

    Raises:
        UserError: A file is damaged, or has a tensor that is none of ``names``.
    """
    known, pieces = whole.names(names), Pieces(whole.layout)
    for file, found in whole.tensors:
        if found.name.endswith(".scale") and found.name.removesuffix("scale") + "weight" in whole.scales:
            continue
        name = known.get(found.name)
        if name is None:
            raise UserError(f"{file} must hold tensors of the model alone, but has {found.name}.")
        if not name.startswith(inside):
            continue
        values = whole.layout.in_model_order(found.name, _dense(file, found))
        if found.name in whole.scales:
            values = values * whole.scales[found.name].reshape(-1, *[1] * (values.dim() - 1))
        tensor = pieces.add(name, found.name, values)
        if tensor is not None:
            in_blocks = found.tensor_type not in _FLOATS
            reshaped = not in_blocks or tensor.dim() == 3
            yield name, whole.layout.as_parameter(name, tensor) if reshaped else tensor, in_blocks


def _ends(model: nn.Module) -> tuple[str, str]:
    """What a model calls the weights of its head and of its embedding, where the head has no weight of its own."""
    if not hasattr(model, "get_output_embeddings"):
        return "", ""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or getattr(head, "weight", None) is not getattr(table, "weight", None):
        return "", ""
    places = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return places[id(head)], places[id(table)]


def _dense(file: Path, found: Any) -> Tensor:
    """Read, not mapped: pages of a mapped file stay in memory."""
    try:
        data = np.fromfile(file, np.uint8, int(found.n_bytes), offset=int(found.data_offset))
        data = data.reshape(*found.data.shape[:-1], -1)
        return torch.from_numpy(dequantized(data, found.tensor_type).copy()).float()
    except Exception as error:
        raise UserError(f"{file} must hold tensors that can be read, but {found.name}: {first_line(error)}.") from error


def _reader(file: Path) -> gguf.GGUFReader:
    check_gguf_header(file)
    try:
        return Reader(file)
    except Exception as error:
        raise UserError(f"{file} must be a GGUF file, but does not load: {first_line(error)}.") from error
