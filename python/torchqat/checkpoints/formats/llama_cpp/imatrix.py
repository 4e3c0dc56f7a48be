"""Importance matrices as llama.cpp's ``llama-imatrix`` writes them: sums of squared inputs, by the names of its tensors."""

from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor, nn

from torchqat.checkpoints.formats.gguf_architectures import architecture_of
from torchqat.checkpoints.formats.llama_cpp.tensors import NameMap, expert_rows, outside
from torchqat.files import pending_file


def write_imatrix(
    path: Path,
    model: nn.Module,
    sums: Iterable[tuple[str, Tensor, Tensor]],
    datasets: list[str],
    chunks: int,
    chunk_size: int,
) -> list[str]:
    """Write ``path``, whole or not at all; returns the names of the tensors that it speaks of.

    Args:
        path: A file, by llama.cpp's custom one that ends in ``.gguf``.
        model: Of an architecture that GGUF files are written for.
        sums: By the name of a parameter, sums of squared inputs ``[matrices, in]`` and tokens ``[matrices]``.
        datasets: What the tokens are from.
        chunks: How many stretches of text they were.
        chunk_size: Tokens of such a stretch.

    Raises:
        UserError: GGUF files are not written for the architecture.
    """
    architecture = architecture_of(model)
    names, beside = NameMap(model, architecture), outside(model, architecture)
    head = model.get_output_embeddings()
    skipped = {f"{name}.weight" for name, module in model.named_modules() if module is head}  # as llama-imatrix does
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, squares, tokens in sums:
        if name.startswith(beside) or name in skipped:
            continue
        parts = expert_rows(name, 2, architecture)
        for part in [one.name for one in parts] or [name]:
            counts = tokens[:, None].float().numpy()
            found[names[part]] = (np.ascontiguousarray(squares.float().numpy()), counts)
    with pending_file(path) as pending:
        _write(pending, found, datasets, chunks, chunk_size)
    return sorted(found)


def _write(
    path: Path, found: dict[str, tuple[np.ndarray, np.ndarray]], datasets: list[str], chunks: int, chunk_size: int
) -> None:
    writer = gguf.GGUFWriter(path, "")  # such a file is of no architecture
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, datasets)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, chunk_size)
    for name in sorted(found):
        squares, counts = found[name]
        writer.add_tensor(f"{name}.in_sum2", squares)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
