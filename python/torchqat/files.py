"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from torchqat.errors import UserError, first_line

# In a folder, what it holds in words; people write there.
CARD = "README.md"
# Bytes of a disk that took no more of a file.
_NOTHING_LEFT = 1 << 16
# In the folder of an export, which files are its own.
SEAL = ".torchqat"


def as_path(name: str, given: object) -> Path:
    """What was ``given`` for the argument ``name`` of a function, as a path.

    Raises:
        UserError: It is none.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise UserError(f"{name} must be the path of a file or folder, but is {given!r}.")
    return Path(given)


def make_room(path: Path) -> None:
    """Make the folder that ``path`` is to be written in, where it is not there; before work whose result goes there.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}.") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path} could not be written: {os.strerror(errno.EACCES)}.")


@contextmanager
def pending_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed onto it when the block ends well, removed when it does not."""
    make_room(path)
    pending = path.with_name(f".{path.name}.pending-{os.getpid()}")
    try:
        yield pending
        sync(pending)
        os.replace(pending, path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        pending.unlink(missing_ok=True)


@contextmanager
def pending_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; takes its place when the block ends well, is removed when it does not."""
    make_room(path)
    pending = path.with_name(f".{path.name}.pending-{os.getpid()}")
    shutil.rmtree(pending, ignore_errors=True)
    try:
        pending.mkdir()
        yield pending
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            os.replace(path, old)
        os.replace(pending, path)
        shutil.rmtree(old, ignore_errors=True)
    except UserError as error:
        raise UserError(str(error).replace(str(pending), str(path))) from error
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def cache_folder() -> Path:
    """Where what torchqat makes once is kept, models and tokens: ``$TORCHQAT_CACHE``, else the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchqat"
    return Path(os.environ.get("TORCHQAT_CACHE", default))


def remove(path: Path) -> None:
    """A file, a folder with what is in it, or a link, whatever it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Let what was written to ``path`` reach the disk."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def write_text(path: Path, text: str) -> None:
    with pending_file(path) as pending:
        pending.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, what: str) -> Any:
    """The JSON of ``path``; ``what`` names the file in the message when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what} must be a readable JSON file, but {path} is not: {error}.") from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """``torch.save``, whole or not at all."""
    with pending_file(path) as pending:
        try:
            torch.save(state, pending)
        except RuntimeError as error:  # what torch raises for a disk that is full, in words of its own
            full = shutil.disk_usage(pending.parent).free < _NOTHING_LEFT
            raise OSError(os.strerror(errno.ENOSPC) if full else first_line(error)) from error


def load_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """What ``save_state`` wrote; ``mmap`` reads tensors when they are looked at."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise UserError(f"{path} must be a checkpoint of torchqat, but does not load: {error}.") from error


def digest_of(folder: Path) -> str:
    """SHA-256, in hexadecimal, over the names and contents of all files in ``folder`` but its card and its seal."""
    found = sha256()
    beside = {folder / CARD, folder / SEAL}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path not in beside):
        found.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as content:
            for part in iter(lambda: content.read(1 << 20), b""):
                found.update(part)
    return found.hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of the files in ``folder`` that hold tensors."""
    kinds = (".safetensors", ".gguf", ".onnx")
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in kinds)


def copy_into(folder: Path, files: Mapping[str, Path]) -> None:
    """Copies of ``files`` in ``folder``, by the names that they are to have there."""
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
