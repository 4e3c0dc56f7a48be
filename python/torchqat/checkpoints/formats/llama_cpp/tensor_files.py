"""The tensors of GGUF files whose headers are written, each put in its place when it is there."""

from typing import BinaryIO

import gguf
import numpy as np


class TensorFiles:
    """Ends the headers of a writer's files and takes their tensors, in any order.

    Where a tensor lies follows from the sizes of those before it, which the header has. What lies between tensors is zero.

    Args:
        writer: That knows all keys and tensors, and has written nothing yet; it is closed with this.
    """

    def __init__(self, writer: gguf.GGUFWriter):
        self._writer = writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        self._places: dict[str, tuple[BinaryIO, int, int]] = {}
        self._missing: set[str] = set()
        for file, tensors in zip(writer.fout, writer.tensors, strict=True):
            end = self._padded(file.tell())
            for name, info in tensors.items():
                self._places[name] = (file, end, info.nbytes)
                end += self._padded(info.nbytes)
            self._missing.update(tensors)
            file.truncate(end)

    def put(self, name: str, data: np.ndarray) -> None:
        """Write the tensor ``name``, as many bytes as the header says."""
        file, begin, size = self._places[name]
        if data.nbytes != size:
            raise ValueError(f"{name} must have {size} bytes, as the header says, but has {data.nbytes}.")
        file.seek(begin)
        file.write(np.ascontiguousarray(data).data)  # tofile says nothing of a disk that is full
        self._missing.discard(name)

    def flush(self) -> None:
        """Let others read what was put."""
        self._writer.flush()

    def close(self) -> None:
        """End the files, all of whose tensors are there."""
        self._writer.close()
        if self._missing:
            raise ValueError(f"A GGUF file must have all tensors of its header, but lacks {min(self._missing)}.")

    def _padded(self, size: int) -> int:
        return gguf.GGUFWriter.ggml_pad(size, self._writer.data_alignment)
