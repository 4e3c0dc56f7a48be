"""safetensors files of a folder, none larger than a limit, and the index that ties them together."""

import re
from pathlib import Path

from torch import Tensor

from torchqat._library import FileError, save_safetensors
from torchqat.errors import UserError
from torchqat.files import write_json

DEFAULT_SHARD_SIZE = "5GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def shard_bytes(size: int | str) -> int:
    """Bytes of a size such as ``5GB``, ``500MB`` or a number.

    Raises:
        UserError: It is no size.
    """
    found = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).strip().upper())
    if found is None or found[2] not in _UNITS or int(found[1]) == 0:
        raise UserError(f"max_shard_size must be a size such as 5GB, 500MB or a number of bytes, but is {size}.")
    return int(found[1]) * _UNITS[found[2]]


class ShardWriter:
    """Tensors written as they come, in the memory of one file.

    Attributes:
        bytes: Of all tensors that are written.
        pending_bytes: Of those that wait for their file to be full.
    """

    def __init__(self, folder: Path, max_shard_size: int | str = DEFAULT_SHARD_SIZE):
        self.folder, self.limit = folder, shard_bytes(max_shard_size)
        self.bytes = self.pending_bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Tensors that stay in one file; one that would grow past the limit is written first."""
        added = sum(tensor.nbytes for tensor in tensors.values())
        if self.pending_bytes + added > self.limit:
            self.flush()
        self._pending.update(tensors)
        self.pending_bytes += added

    def flush(self) -> Path | None:
        """End the file at hand; returns it, or ``None`` when there is nothing to write."""
        if not self._pending:
            return None
        path = self.folder / f"shard-{len(self._shards)}.safetensors"
        try:
            save_safetensors(str(path), self._pending)
        except FileError as error:
            raise UserError(str(error)) from error
        self._shards.append(sorted(self._pending))
        self.bytes += self.pending_bytes
        self._pending, self.pending_bytes = {}, 0
        return path

    def finish(self) -> None:
        """Give the files the names that readers look for."""
        self.flush()
        total = len(self._shards)
        if total == 1:
            (self.folder / "shard-0.safetensors").rename(self.folder / "model.safetensors")
            return
        index: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{total:05}.safetensors"
            (self.folder / f"shard-{number}.safetensors").rename(self.folder / file)
            index.update(dict.fromkeys(names, file))
        write_json(
            self.folder / "model.safetensors.index.json",
            {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(index.items()))},
        )
