"""One process at a time in a run's folder."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from torchqat.errors import UserError
from torchqat.files import remove

_RUN, _HOLDER, _REPORT = ".lock", ".holder.lock", ".report.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made if it is not there, while the block runs. A process that dies lets go of it.

    Raises:
        UserError: Another process holds it, or it cannot be written to.
    """
    lock, named = FileLock(folder / _RUN, timeout=0), folder / _HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        holder = named.read_text(errors="replace").strip() if named.is_file() else "unknown"
        raise UserError(
            f"output must be a folder that no other run works in, but process {holder} works in {folder}."
        ) from error
    except OSError as error:
        raise UserError(f"output must be a folder that can be written to, but {folder}: {error.strerror}.") from error
    try:
        named.write_text(f"{os.getpid()}\n")
        yield
    finally:
        named.unlink(missing_ok=True)
        lock.release()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """For a moment's change: wait until no other is at one in ``folder``, which is made if it is not there; not nested."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / _REPORT):
        yield


def others_in(folder: Path) -> list[Path]:
    """What is in ``folder`` besides locks and what a process that died has left half written."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name not in (_RUN, _HOLDER, _REPORT) and not _is_leftover(path)]


def remove_leftovers(folder: Path) -> None:
    """Remove files and folders that were to be renamed into place (files.py). Only for a folder that is locked."""
    for path in list(folder.rglob(".*")):
        if _is_leftover(path) and not _is_at_work(int(path.name.rpartition("-")[2])):
            with suppress(OSError):
                remove(path)


def _is_at_work(process: int) -> bool:
    """Whether another process of that number lives: it may be writing into the folder, as ``torchqat export`` does."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process != os.getpid()


def _is_leftover(path: Path) -> bool:
    return re.fullmatch(r"\..+\.(pending|old)-\d+", path.name) is not None
