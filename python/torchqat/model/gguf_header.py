"""Whether the counts in a GGUF file can be true. The gguf package believes them: 100 bytes can keep it busy for years.

The layout is that of ggml's docs/gguf.md: magic, version, two counts, then keys with typed values; numbers little-endian.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from torchqat.errors import UserError

_STRING, _ARRAY = 8, 9
# Bytes of a value, by its type: integers of 8 to 32 bits, float32, bool, and those of 64 bits.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LEAST_KEY, _LEAST_TENSOR = 13, 24  # bytes of a key and of a tensor's entry, with empty names


def check_gguf_header(path: Path) -> None:
    """Raises UserError unless ``path`` is as long as its keys and counts of tensors say at least."""
    with open(path, "rb") as file:
        walk = _Walk(file, path.stat().st_size)
        _check(walk, path)


def _check(walk: "_Walk", path: Path) -> None:
    try:
        if walk.take(4) != b"GGUF" or walk.number(4) not in (2, 3):
            raise ValueError("it must begin with GGUF and version 2 or 3")
        tensors, keys = walk.number(8), walk.number(8)
        walk.need(keys * _LEAST_KEY + tensors * _LEAST_TENSOR)
        for _ in range(keys):
            walk.string()
            walk.value(walk.number(4))
        walk.need(tensors * _LEAST_TENSOR)
    except ValueError as error:
        raise UserError(f"{path} must be a GGUF file, but does not load: {error}.") from error


@dataclass
class _Walk:
    """A place in a file of ``size`` bytes; only what is looked at is read."""

    file: BinaryIO
    size: int
    at: int = 0

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise ValueError(f"{count} bytes must follow byte {self.at}, but the file has {self.size}")

    def take(self, count: int) -> bytes:
        self.skip(count)
        self.file.seek(self.at - count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self.need(count)
        self.at += count

    def number(self, bytes: int) -> int:
        return int.from_bytes(self.take(bytes), "little")

    def string(self) -> None:
        self.skip(self.number(8))

    def value(self, type: int) -> None:
        if type == _STRING:
            self.string()
        elif type == _ARRAY:
            self._array()
        elif type in _SIZES:
            self.skip(_SIZES[type])
        else:
            raise ValueError(f"a value's type must be 0 to 12, but is {type} at byte {self.at}")

    def _array(self) -> None:
        type, count = self.number(4), self.number(8)
        if type == _ARRAY:
            raise ValueError(f"arrays must not hold arrays, but one does at byte {self.at}")
        if type in _SIZES:
            self.skip(count * _SIZES[type])
            return
        self.need(count * 8)  # the lengths of its strings
        for _ in range(count):
            self.value(type)
