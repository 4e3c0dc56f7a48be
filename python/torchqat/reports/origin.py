"""Where a float model came from, and what its license says of those who pass on what is made of it."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchqat.files import CARD
from torchqat.model.source import folder_with, is_gguf

# Files that say on which terms a model may be passed on.
_TERMS = ("LICENSE*", "LICENCE*", "License*", "license*", "COPYING*", "NOTICE*", "USE_POLICY*")
# What is carried over of a source's card.
_CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")


@dataclass(frozen=True)
class Origin:
    """A float model.

    Attributes:
        name: For people, without the folders above it.
        repository: On the Hub, ``org/name``; empty where it is a folder or a file of which nothing says so.
        metadata: License, language and task, as its own card has them.
        terms: Its files of licenses.
    """

    name: str
    repository: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    terms: list[Path] = field(default_factory=list)


def origin_of(path: str) -> Origin:
    """What lies at ``path``, a folder, GGUF file, hub id or function; what cannot be fetched is not there."""
    place = Path(path)
    name = place.resolve().name if place.exists() else path
    if not place.exists() and ":" in path:  # a function of the user's
        return Origin(name)
    repository = _repository_of(path)
    if is_gguf(path):
        return Origin(name, repository, _of_gguf(place), _terms_in(place.parent))
    folder = folder_with(path, [CARD, *_TERMS])
    if folder is None:
        return Origin(name, repository)
    return Origin(repository or name, repository, _of_card(folder / CARD), _terms_in(folder))


def copy_terms(origin: Origin, folder: Path) -> None:
    """The files of its licenses into ``folder``, those that are there already aside."""
    for file in origin.terms:
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _repository_of(path: str) -> str:
    """The hub id that ``path`` is, or of which it is the copy that the hub's library keeps."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    place = Path(path)
    if place.exists():
        kept = next((part for part in place.resolve().parts if part.startswith("models--")), "")
        return kept.removeprefix("models--").replace("--", "/", 1)
    try:
        validate_repo_id(path)
    except HFValidationError:
        return ""
    return path


def _terms_in(folder: Path) -> list[Path]:
    return sorted({file for pattern in _TERMS for file in folder.glob(pattern) if file.is_file()})


def _of_card(card: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    if not card.is_file():
        return {}
    try:
        found = metadata_load(card)
    except Exception:  # whatever a stranger has written there
        return {}
    return {key: found[key] for key in _CARRIED if key in found} if isinstance(found, dict) else {}


def _of_gguf(file: Path) -> dict[str, Any]:
    import gguf

    keys = {
        "license": "general.license",
        "license_name": "general.license.name",
        "license_link": "general.license.link",
    }
    reader = gguf.GGUFReader(file)
    fields = {key: reader.get_field(place) for key, place in keys.items()}
    return {key: str(found.contents()) for key, found in fields.items() if found is not None}
