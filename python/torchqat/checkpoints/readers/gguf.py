"""GGUF files by the gguf package's reader and dequantizer, put back under the names and in the order of the model."""

from pathlib import Path

import gguf
import torch
from torch import Tensor, nn

from torchqat.checkpoints.formats.gguf import ROPE_FACTORS
from torchqat.checkpoints.formats.gguf_architectures import NameMap, RowOrder, architecture_of
from torchqat.checkpoints.readers.gguf_header import check_gguf_header
from torchqat.checkpoints.readers.reading import Reading
from torchqat.errors import UserError, first_line
from torchqat.layers.prepared import quant_layers

_FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16)


def gguf_files(folder: Path) -> list[Path]:
    """The parts of the model, in order."""
    return sorted(folder.glob("*.gguf"))


def read_gguf(folder: Path, model: nn.Module) -> Reading:
    """The files in ``folder``, which were exported from ``model``; every tensor in float32.

    Layers that training quantized are ``weights`` where the file has blocks of them; the rest are ``others``, as they are.

    Raises:
        UserError: A file is damaged, or has a tensor that the model does not have.
    """
    architecture = architecture_of(model)
    names = NameMap(architecture, model.config.num_hidden_layers)
    quantized = {f"{name}.weight" for name, layer in quant_layers(model) if layer.weight_spec is not None}
    known = {names[name]: name for name, _ in model.state_dict().items() if _has_place(names, name)}
    known[ROPE_FACTORS] = ROPE_FACTORS
    order = RowOrder(model, architecture)
    reading = Reading()
    for file in gguf_files(folder):
        for found in _tensors(file):
            name = known.get(found.name)
            if name is None:
                raise UserError(f"{file} must hold tensors of the model alone, but has {found.name}.")
            values = _in_model_order(_dense(file, found), order.heads_of(name))
            if name in quantized and found.tensor_type not in _FLOATS:
                reading.weights[name.removesuffix(".weight")] = values
            else:
                reading.others[name] = values
    return reading


def _dense(file: Path, found) -> Tensor:
    try:
        return torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy()).float()
    except Exception as error:
        raise UserError(f"{file} must hold tensors that can be read, but {found.name}: {first_line(error)}.") from error


def _in_model_order(rows: Tensor, heads: int | None) -> Tensor:
    """Row by row, what llama.cpp rotates as neighbours back to the halves of a head."""
    if heads is None:
        return rows
    size = len(rows) // heads
    origin = [h * size + 2 * (i % (size // 2)) + i // (size // 2) for h in range(heads) for i in range(size)]
    return rows[origin]


def stored_types(folder: Path) -> dict[str, gguf.GGMLQuantizationType]:
    """The type of each tensor, by its name in the file."""
    return {found.name: found.tensor_type for file in gguf_files(folder) for found in _tensors(file)}


def _tensors(file: Path) -> list:
    check_gguf_header(file)
    try:
        return gguf.GGUFReader(file).tensors
    except Exception as error:
        raise UserError(f"{file} must be a GGUF file, but does not load: {first_line(error)}.") from error


def _has_place(names: NameMap, name: str) -> bool:
    try:
        return bool(names[name])
    except UserError:
        return False
