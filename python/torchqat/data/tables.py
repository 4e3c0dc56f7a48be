"""Rows of Parquet files and of data sets of the Hub, by the library ``datasets``."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from torchqat.errors import UserError, first_line
from torchqat.extras import needs

_ROWS_AT_ONCE = 1024


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of ``file``, of which few are held at a time.

    Raises:
        UserError: ``datasets`` is not installed, or the file is no Parquet.
    """
    with needs("data", "Parquet"):
        from datasets import load_dataset
        from pyarrow.parquet import read_metadata
    try:
        if not read_metadata(file).num_rows:
            return  # which datasets takes for a fault
        yield from load_dataset("parquet", data_files=[str(file)], split="train", streaming=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data must be readable, but {file} is not: {first_line(error)}") from error


def hub_rows(name: str, subset: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the Hub, which stay on disk.

    Raises:
        UserError: ``datasets`` is not installed, or there is no such data set, on the Hub or in its cache.
    """
    yield from _data_set(name, subset, split)


def hub_digest(name: str, subset: str, split: str) -> str:
    """Changes with any element of such a data set."""
    with needs("data", "A data set of the Hub"):
        import pyarrow

    digest = sha256()
    for table in _data_set(name, subset, split).with_format("arrow").iter(_ROWS_AT_ONCE):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata().combine_chunks())
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _data_set(name: str, subset: str, split: str):
    with needs("data", "A data set of the Hub"):
        from datasets import load_dataset
    try:
        return load_dataset(name, subset or None, split=split)
    except Exception as error:
        part = "".join(f", {key} {value}" for key, value in (("subset", subset), ("split", split)) if value)
        raise UserError(
            f"data must be a file or folder that exists, or a data set of the Hub that can be read, but {name}{part} is "
            f"neither: {first_line(error)}"
        ) from error
