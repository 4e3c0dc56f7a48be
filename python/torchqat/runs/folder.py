"""The folder of a run: held by one process at a time, and its report, which changes in one way."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchqat.errors import UserError
from torchqat.files import read_json, write_json, write_text
from torchqat.reports.report import REPORT, Report, environment, read_report
from torchqat.runs.locking import locked, others_in, remove_leftovers

_SETTINGS = "run.json"


def check_free(folder: Path) -> None:
    """Raises UserError if ``folder`` is somebody else's: it has files, and is no run's."""
    if others_in(folder) and not is_run(folder):
        raise UserError(f"output must be an empty folder or that of a run, but {folder} has other files.")


def is_run(folder: Path) -> bool:
    return (folder / _SETTINGS).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` was started with.

    Raises:
        UserError: It is not the folder of a run.
    """
    if not is_run(folder):
        raise UserError(f"RUN must be the folder of a run, with a {_SETTINGS}, but {folder} is not.")
    return read_json(folder / _SETTINGS, "The settings of a run")


@contextmanager
def held(folder: Path, settings: dict[str, Any], texts: dict[str, str], resume: bool) -> Iterator[None]:
    """``folder``, made ready for a run, while the block runs.

    Args:
        folder: Made if it is not there.
        settings: What the run was started with; ``identity`` says whether a report that is there belongs to it.
        texts: Files that tell people of it, by their names.
        resume: Go on with what is there.

    Raises:
        UserError: Another process holds it.
    """
    with locked(folder):
        remove_leftovers(folder)
        report = read_report(folder) if resume and _belongs(folder, settings) else Report()
        if not resume:
            for name in ("checkpoints", "candidates", "metrics.jsonl"):
                _remove(folder / name)
        write_json(folder / _SETTINGS, settings)  # first: it says that the folder is a run's
        for name, text in texts.items():
            write_text(folder / name, text)
        report.environment = environment()
        write_json(folder / REPORT, report.to_json())
        yield


def _belongs(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether what the folder holds was made from the same recipe, model and data."""
    return is_run(folder) and read_settings(folder).get("identity") == settings["identity"]


@contextmanager
def changed_report(folder: Path) -> Iterator[Report]:
    """The report of the run in ``folder``, to be changed; written when the block ends well."""
    report = read_report(folder)
    yield report
    write_json(folder / REPORT, report.to_json())


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
