"""What lies at the path of a model: a folder, a GGUF file or a hub id; its tensors' headers, and the dtype they are in."""

import json
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from torchqat._library import FileError, check_safetensors
from torchqat.errors import UserError, first_line, first_of
from torchqat.files import read_json
from torchqat.model.gguf_header import check_gguf_header

# Words of safetensors headers for what weights are in that are not quantized.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def check_place(path: str) -> None:
    """Raises UserError unless ``path`` is a folder or GGUF file that is whole, or may be a hub id."""
    folder = Path(path)
    if is_gguf(path):
        check_gguf_header(folder)
        return
    if not folder.is_dir():
        if folder.is_file() or path.startswith((".", "/", "~")):
            raise UserError(f"model must be a folder that exists or a hub id, but {path} is not a folder.")
        return
    if not (folder / "config.json").is_file():
        inside = sorted(folder.glob("*.gguf"))
        hint = f"; give the file in it, {inside[0]}" if inside else ""
        raise UserError(f"model must be a Hugging Face folder with a config.json, but {path} has none{hint}.")
    _check_index(folder / "model.safetensors.index.json")
    try:
        for file in sorted(folder.glob("*.safetensors")):
            check_safetensors(str(file))
    except FileError as error:
        raise UserError(str(error)) from error


def _check_index(path: Path) -> None:
    """The files that it names are read: none outside the folder."""
    if not path.is_file():
        return
    index = read_json(path, "The index of a model's files")
    files = index.get("weight_map") if isinstance(index, dict) else None
    for name in files.values() if isinstance(files, dict) else [files]:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path} must map names of tensors to names of files beside it, but has {name!r}.")


def is_gguf(path: str) -> bool:
    return path.endswith(".gguf") and Path(path).is_file()


def place_of(path: str) -> tuple[str, dict[str, str]]:
    """What transformers is given to find ``path`` by: a folder or hub id, and options."""
    return (str(Path(path).parent), {"gguf_file": Path(path).name}) if is_gguf(path) else (path, {})


def folder_of(path: str) -> Path | None:
    """The folder itself, or where the hub's library keeps what it fetched of ``path``; ``None`` where neither is there."""
    if Path(path).is_dir():
        return Path(path)
    if is_gguf(path):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def folder_with(path: str, patterns: Sequence[str]) -> Path | None:
    """As ``folder_of``, files whose names fit one of ``patterns`` being fetched before, where there is network."""
    if Path(path).is_dir() or is_gguf(path):
        return folder_of(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return folder_of(path)


def file_of(path: str, name: str) -> Path | None:
    """The file ``name`` of a folder or, fetched if it is not here, of a hub id; ``None`` where that has none.

    Raises:
        UserError: Whether it has one could not be found out.
    """
    if Path(path).exists():
        return Path(path) / name if (Path(path) / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} of {path} is not here and could not be fetched from the hub: {first_line(error)}"
        ) from error
    except (EntryNotFoundError, HFValidationError):
        return None


def tensors_of(path: str) -> dict[str, dict[str, Any]]:
    """``dtype`` and ``shape`` of each tensor that safetensors files hold there, as their headers say; none elsewhere."""
    folder, found = folder_of(path), {}
    for file in files_of(folder) if folder is not None else []:
        found.update(read_header(file))
    return found


def files_of(folder: Path) -> list[Path]:
    """The safetensors files that are loaded: some folders have the same weights in other files, by other names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    named = sorted(set(read_json(index, "The index of a model's files")["weight_map"].values()))
    return [folder / name for name in named if (folder / name).is_file()]


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a safetensors file, by the names of its tensors.

    Raises:
        UserError: It is no such file.
    """
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    try:
        return {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    except ValueError as error:
        raise UserError(f"{path} must be a safetensors file, but its header is no JSON.") from error


def dtype_of(path: str) -> torch.dtype | None:
    """What most of the floating elements are in that lie there; ``None`` where nothing says so."""
    elements: Counter[torch.dtype] = Counter()
    for entry in tensors_of(path).values():
        if entry["dtype"] in FLOATS:
            elements[FLOATS[entry["dtype"]]] += prod(entry["shape"])
    return elements.most_common(1)[0][0] if elements else None


def doubles_of(tensors: dict[str, dict[str, Any]]) -> list[str]:
    """Names of what headers say is float64."""
    return [name for name, entry in tensors.items() if entry["dtype"] == "F64"]


def double_note(doubles: list[str], path: str, dtype: str) -> str:
    """A sentence where tensors of ``path`` in float64 have more digits than the ``dtype`` that they are read in; else empty.

    Of narrower ones there is none: which of them a model is read in is the user's choice.
    """
    if not doubles:
        return ""
    return (
        f"{path} has {first_of(doubles)} in float64, in which nothing is trained here: they are read in {dtype}, and what "
        "is called full precision is that."
    )
