"""Tensors of GGUF files as numbers: by the gguf package, and Q2_0, which it does not know, by llama.cpp's definition."""

from typing import Any

import gguf
import numpy as np
from gguf.gguf_reader import ReaderField, ReaderTensor

Q2_0 = 42
_COLUMNS, _BYTES = 64, 18  # of a block: float16 d, then four codes to a byte


class Reader(gguf.GGUFReader):
    """The gguf package's reader, which finds tensors of Q2_0 as well: their ``tensor_type`` is 42."""

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        super()._build_tensors(start_offs, [field for field in fields if field.parts[4][0] != Q2_0])
        known = {tensor.name: tensor for tensor in self.tensors}
        self.tensors = [known.get(_name(field)) or self._q2_0(start_offs, field) for field in fields]

    def _q2_0(self, start: int, field: ReaderField) -> ReaderTensor:
        dims, offset = field.parts[3], int(start + field.parts[5][0])
        rows = tuple(reversed(dims.tolist()))
        shape = (*rows[:-1], rows[-1] // _COLUMNS * _BYTES)
        size = int(np.prod(shape))
        data = self._get(offset, np.uint8, size).reshape(shape)
        return ReaderTensor(_name(field), Q2_0, dims, int(np.prod(dims)), size, offset, data, field)


def _name(field: ReaderField) -> str:
    return bytes(field.parts[1]).decode()


def dequantized(data: Any, kind: int) -> np.ndarray:
    """The numbers of a tensor, its bytes along the last axis of ``data``."""
    if kind != Q2_0:
        return gguf.dequantize(data, gguf.GGMLQuantizationType(kind))
    blocks = data.reshape(-1, _BYTES)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    codes = blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return (d * (codes.reshape(-1, _COLUMNS).astype(np.float32) - 1)).reshape(*data.shape[:-1], -1)
