"""What a checkpoint says of how it is quantized, beside what an export of the model would say: engines decode by it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from torchqat.checkpoints.export import FOLDERS
from torchqat.checkpoints.formats.folder import write_configuration
from torchqat.checkpoints.formats.known import find_format
from torchqat.checkpoints.formats.naming import documents_on_disk
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.files import read_json
from torchqat.model.disk_names import DiskNames

# Keys of a config.json that an export makes, and what in them says who wrote it, and when. A version is that of the writer
# but in awq, where it is a layout; readers of our own folders ask for theirs.
_OF_QUANTIZATION = ("quantization_config", "quantization", "tie_word_embeddings")
_OF_WRITER = {"version", "global_compression_ratio", "producer", "meta"}
_LAYOUTS = {"awq": "version"}
_LOST = object()


def differing_storage(folder: Path, format: str, model: nn.Module) -> list[str]:
    """The keys by which readers decode the checkpoint in ``folder``, where they say something else than an export would.

    Of files beside ``config.json`` with the name of the file. Formats that are one file have none.
    """
    if format not in FOLDERS:
        return []
    plan, names, ignored = checkpoint_plan(model), [], _OF_WRITER - {_LAYOUTS.get(format)}
    documents = documents_on_disk(model, plan, find_format(format), DiskNames(model))
    with tempfile.TemporaryDirectory() as scratch:
        write_configuration(model, Path(scratch), plan, documents, None)
        for file in sorted({"config.json", *documents}):
            if not (Path(scratch) / file).is_file():
                continue
            wanted, found = _read(Path(scratch) / file), _read(folder / file)
            if file != "config.json":
                names += _differing(found, wanted, f"{file}:", ignored)
                continue
            for key in _OF_QUANTIZATION:
                names += _differing(found.get(key, _LOST), wanted.get(key, _LOST), key, ignored)
    return names


def _read(path: Path) -> Any:
    return read_json(path, "The configuration of a checkpoint") if path.is_file() else {}


def _differing(found: Any, wanted: Any, place: str, ignored: set[str]) -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        dot = "" if place.endswith(":") else "."
        return [
            name
            for key in sorted((found.keys() | wanted.keys()) - ignored)
            for name in _differing(found.get(key, _LOST), wanted.get(key, _LOST), f"{place}{dot}{key}", ignored)
        ]
    return [] if _in_any_order(found) == _in_any_order(wanted) else [place]


def _in_any_order(value: Any) -> Any:
    return sorted(value, key=json.dumps) if isinstance(value, list) else value
