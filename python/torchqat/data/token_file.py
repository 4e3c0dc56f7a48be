"""Tokens on disk, of which memory holds what is looked at."""

import json
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_META = "tokens.json"
_DOCUMENTS = "documents.npy"
# A type that holds every token of a smaller vocabulary.
_SMALL = 1 << 16


@dataclass(frozen=True)
class Tokens:
    """Rows of tokens, one after the other.

    Attributes:
        ids: Integers ``[n]``, an array in memory or a file mapped into it.
        starts: Where each row begins and the last one ends, int64 ``[rows + 1]``.
        counted: bool ``[n]``, which of them are learned and measured; ``None`` where all are.
        digest: Changes with any of these.
        largest: The largest token; 0 where there is none.
        documents: A digest of each document that they are of, uint64 ``[documents]``; none where these are not known.
    """

    ids: np.ndarray
    starts: np.ndarray
    counted: np.ndarray | None
    digest: str
    largest: int
    documents: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    @classmethod
    def of(cls, tokens: Tensor) -> "Tokens":
        """Those of one row in memory, int64 ``[n]``."""
        ids = tokens.numpy()
        content = sha256(np.ascontiguousarray(ids)).hexdigest()
        return cls(ids, np.array([0, len(ids)]), None, content, int(ids.max(initial=0)))

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self.ids)

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    def row(self, place: int, most: int) -> tuple[Tensor, Tensor]:
        """The first ``most`` tokens of row ``place``, int64, and which of them count, bool."""
        begin = int(self.starts[place])
        end = min(int(self.starts[place + 1]), begin + most)
        ids = torch.from_numpy(self.ids[begin:end].astype(np.int64))
        if self.counted is None:
            return ids, torch.ones(len(ids), dtype=torch.bool)
        return ids, torch.from_numpy(self.counted[begin:end].astype(bool))

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """int64 ``[len(starts), length]``, from each of ``starts`` on."""
        places = starts[:, None] + torch.arange(length)
        return torch.from_numpy(self.ids[places.numpy()].astype(np.int64))


class TokenWriter(ExitStack):
    """Writes a folder that ``read_tokens`` reads, row after row, and holds 8 bytes a row; whole when its block ends well.

    Args:
        folder: Of no other files.
        vocabulary: Above every token.
        masks: Whether some tokens do not count.
        documents: A digest of each document, at least 8 bytes.
    """

    def __init__(self, folder: Path, vocabulary: int, masks: bool, documents: Sequence[bytes] = ()):
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / _DOCUMENTS, np.frombuffer(b"".join(one[:8] for one in documents), np.uint64))
        self._folder, self._dtype = folder, np.uint16 if vocabulary <= _SMALL else np.uint32
        self._ids = self.enter_context(open(folder / "ids.bin", "wb"))  # noqa: SIM115
        self._counted = self.enter_context(open(folder / "counted.bin", "wb")) if masks else None  # noqa: SIM115
        self._starts, self._count, self._digest, self._largest = array("q", [0]), 0, sha256(), 0

    def add(self, ids: list[int], counted: list[bool] | None = None) -> None:
        """Go on with the row by these tokens."""
        typed = np.asarray(ids, dtype=self._dtype)
        found = typed.tobytes()
        self._ids.write(found)
        self._digest.update(found)
        self._count += len(ids)
        self._largest = max(self._largest, int(typed.max(initial=0)))
        if self._counted is not None:
            mask = np.asarray(counted, dtype=np.bool_).tobytes()
            self._counted.write(mask)
            self._digest.update(mask)

    def end_row(self) -> None:
        self._starts.append(self._count)

    def __exit__(self, kind, error, trace) -> None:
        super().__exit__(kind, error, trace)
        if kind is not None:
            return
        starts = np.frombuffer(self._starts, dtype=np.int64)
        self._digest.update(starts.tobytes())
        np.save(self._folder / "starts.npy", starts)
        meta = {"dtype": np.dtype(self._dtype).name, "digest": self._digest.hexdigest(), "largest": self._largest}
        (self._folder / _META).write_text(json.dumps(meta))


def read_tokens(folder: Path) -> Tokens:
    """What a ``TokenWriter`` wrote, mapped into memory."""
    meta = json.loads((folder / _META).read_text())
    starts = np.load(folder / "starts.npy", mmap_mode="r")
    mask = folder / "counted.bin"
    counted = _mapped(mask, np.bool_) if mask.is_file() else None
    ids = _mapped(folder / "ids.bin", np.dtype(meta["dtype"]))
    return Tokens(ids, starts, counted, meta["digest"], meta["largest"], np.load(folder / _DOCUMENTS, mmap_mode="r"))


def _mapped(file: Path, dtype) -> np.ndarray:
    """An empty file cannot be mapped."""
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)
