"""The folder of a run: held by one process at a time, deleted only when that is said, its report changed in one way."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchqat._library import Recipe
from torchqat.errors import UserError
from torchqat.files import read_json, remove, write_json, write_text
from torchqat.reports.report import REPORT, Report, environment, read_report
from torchqat.runs.identity import differences
from torchqat.runs.locking import alone, locked, others_in, remove_leftovers
from torchqat.training.state import step_of

_SETTINGS = "run.json"
# Of what is written there.
VERSION = 3
# What a run makes beside its settings. The report goes first: without it, nothing is taken for measured.
_MADE = (REPORT, "checkpoints", "candidates", "exports", "tensorboard", "metrics.jsonl", "report.html", "plan.txt")
_MADE += ("recipe.yaml",)


def default_folder(recipe: Recipe) -> Path:
    """``runs/<model>-<recipe>``, each by the last part of its name."""
    model = recipe.model.path.rstrip("/").replace(":", "/").rpartition("/")[2] or "scratch"
    return Path("runs") / f"{model}-{Path(recipe.file).stem}"


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is that of a run."""
    return (folder / _SETTINGS).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` was started with.

    Raises:
        UserError: It is not the folder of a run, or that of one of another version.
    """
    if not is_run(folder):
        raise UserError(f"RUN must be the folder of a run, with a {_SETTINGS}, but {folder} is not.")
    settings = _settings(folder)
    if settings.get("version") != VERSION:
        raise UserError(f"{folder} must have been written by this torchqat, but its run.json is of another version.")
    return settings


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / _SETTINGS, "The settings of a run")


def check_asked(folder: Path, resume: bool, restart: bool) -> None:
    """Whether ``folder`` is one that was asked for: a free one, or that of a run to go on with or to begin again.

    Raises:
        UserError: It is not.
    """
    if resume and restart:
        raise UserError("Either --resume or --restart must be given, but both are.")
    if others_in(folder) and not is_run(folder):
        raise UserError(f"output must be an empty folder or that of a run, but {folder} has other files.")
    if resume and not is_run(folder):
        raise UserError(f"--resume goes on with a run, but {folder} has none.")
    if is_run(folder) and not (resume or restart):
        raise UserError(
            f"{folder} has a run{_how_far(folder)}: --resume goes on with it, --restart deletes it and begins again."
        )


def _how_far(folder: Path) -> str:
    total, variants = _settings(folder).get("steps", 0), len(read_report(folder).variants)
    try:
        step = step_of(folder / "checkpoints" / "train.pt")
    except UserError:
        return " whose training state does not load"
    if total and step is not None:
        return f" at step {step} of {total}"
    if variants:
        return f" that has measured {variants} variant{'s' if variants > 1 else ''}"
    return " that has only begun"


def check_same(folder: Path, parts: dict[str, Any]) -> None:
    """Whether the run in ``folder`` is made of the same recipe, model and data as what was asked for.

    Raises:
        UserError: It is not; what differs is named.
    """
    found = differences(read_settings(folder)["made_of"], parts)
    if found:
        raise UserError(
            f"To be gone on with, the run in {folder} must be made of the same recipe, model and data, but "
            f"{'; '.join(found[:3])}{' ...' if len(found) > 3 else ''}. Give the options "
            "that it was begun with, or another --output; --restart deletes it."
        )


def same_dtype(folder: Path, asked: str) -> str:
    """What the run in ``folder`` writes its checkpoints in, which is what was ``asked`` for, if anything was.

    Raises:
        UserError: It is not.
    """
    then = read_settings(folder).get("dtype", "")
    if asked not in ("", then):
        raise UserError(
            f"To be gone on with, the run in {folder} must have {f'dtype {then}' if then else 'no dtype'}, but {asked} is "
            "given; torchqat export RUN --dtype writes another checkpoint."
        )
    return then


@contextmanager
def held(
    folder: Path, settings: dict[str, Any], texts: dict[str, str], device: str, resume: bool, restart: bool
) -> Iterator[None]:
    """``folder``, made ready for a run, while the block runs.

    Args:
        folder: Made if it is not there.
        settings: What the run is started with.
        texts: Files that tell people of it, by their names.
        device: What it computes on, by its name.
        resume: Go on with what is there.
        restart: Delete what a run has made there.

    Raises:
        UserError: Another process holds it, or has meanwhile begun a run in it.
    """
    with locked(folder):
        check_asked(folder, resume, restart)
        remove_leftovers(folder)
        for name in _MADE if restart else ():
            _remove(folder / name)
        # It says that the folder is a run's, and is never missing from then on.
        write_json(folder / _SETTINGS, settings)
        for name, text in texts.items():
            write_text(folder / name, text)
        with changed_report(folder) as report:
            report.environment = environment(_devices(report.environment, device))
        yield


def version_note(folder: Path, device: str) -> str:
    """A sentence where the run in ``folder`` was begun with another torch or torchqat, or on another device; else empty."""
    then, now = read_report(folder).environment, environment(device)
    names = ("torchqat", "torch", "device")
    changed = [f"{name} {then[name]}" for name in names if then.get(name, now[name]) != now[name]]
    return f"The run was begun with {' and '.join(changed)}, and goes on with others." if changed else ""


def _devices(then: dict[str, str], now: str) -> str:
    """All that a run was measured on, the first first."""
    before = then.get("device", now)
    return before if now in before.split("; ") else f"{before}; {now}"


@contextmanager
def changed_report(folder: Path) -> Iterator[Report]:
    """The report of the run in ``folder``, to be changed; written when the block ends well. One process at a time may."""
    with alone(folder):
        report = read_report(folder)
        yield report
        write_json(folder / REPORT, report.to_json())


def _remove(path: Path) -> None:
    """Away at once, also in part: what a process that dies has only renamed, the next one removes."""
    if not path.exists() and not path.is_symlink():
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.replace(path, old)
    remove(old)
