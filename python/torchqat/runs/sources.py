"""The sources of a recipe's data, as the folder of a run keeps them."""

from pathlib import Path
from typing import Any

from torchqat._library import DataSource

_KEYS = ("path", "subset", "split", "column", "weight")


def absolute(source: str) -> str:
    """A path that is there, whatever folder a later command is given in; other words as they are."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def kept_source(source: DataSource) -> dict[str, Any]:
    """What ``data_source`` takes, as JSON."""
    return {key: getattr(source, key) for key in _KEYS} | {"path": absolute(source.path)}


def data_source(found: dict[str, Any]) -> DataSource:
    """What ``kept_source`` was made of."""
    source = DataSource()
    for key in _KEYS:
        setattr(source, key, found[key])
    return source
