"""The sources of a recipe's data, as the folder of a run keeps them."""

from pathlib import Path
from typing import Any

from torchqat._library import DataSection, DataSource
from torchqat.errors import UserError

KEYS = ("path", "subset", "split", "column", "weight")


def absolute(source: str) -> str:
    """A path that is there, whatever folder a later command is given in; other words as they are."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def check_apart(output: Path, data: DataSection) -> None:
    """Whether what a run writes to ``output`` becomes no part of its ``data``, which a later run would read.

    Raises:
        UserError: ``output`` is in a folder of data.
    """
    for source in (data.train, data.evaluation_path, *(one.path for one in data.sources)):
        if source and Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
            raise UserError(
                f"output must not be in a folder of data, of which it would become a part, but {output} is in {source}."
            )


def kept_source(source: DataSource) -> dict[str, Any]:
    """What ``data_source`` takes, as JSON."""
    return {key: getattr(source, key) for key in KEYS} | {"path": absolute(source.path)}


def data_source(found: dict[str, Any]) -> DataSource:
    """What ``kept_source`` was made of."""
    source = DataSource()
    for key in KEYS:
        setattr(source, key, found[key])
    return source
