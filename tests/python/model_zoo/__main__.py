"""The sweep: every model, one after the other, each with a file of its own, so that it can be ended and begun again.

PYTHONPATH=tests/python python -m model_zoo FOLDER [NAME ...] [--again]
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # of libraries that draw a bar a model

import argparse
import dataclasses
import json
import signal
from pathlib import Path

import transformers

from model_zoo.examine import examine
from model_zoo.models import Entry, entries
from model_zoo.result import FAULT, Cell, Result

SECONDS = 60


def file_of(folder: Path, entry: Entry) -> Path:
    return folder / f"{str(entry).replace(', ', '--').replace(' ', '-')}.json"


def sweep(folder: Path, chosen: list[Entry], again: bool) -> None:
    """Examine what has no file in ``folder`` yet; all of ``chosen`` when ``again``."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _too_long)
    for entry in chosen:
        file = file_of(folder, entry)
        if file.exists() and not again:
            continue
        # What is left of a process that died in it.
        _write(file, Result(str(entry), entry.kind, entry.purpose, cells={"covered": Cell(FAULT, "the process died")}))
        signal.alarm(SECONDS)
        try:
            result = examine(entry)
        except TimeoutError as error:
            result = Result(str(entry), entry.kind, entry.purpose, cells={"covered": Cell(FAULT, str(error))})
        finally:
            signal.alarm(0)
        _write(file, result)
        states = [cell.state for cell in result.cells.values()]
        print(f"{entry}: {result.built or ' '.join(states)}  {result.seconds} s", flush=True)


def _write(file: Path, result: Result) -> None:
    file.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")


def _too_long(*_) -> None:
    raise TimeoutError(f"it took more than {SECONDS} seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the results")
    parser.add_argument("names", nargs="*", help="models, by default all")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    options = parser.parse_intermixed_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    known = {str(entry): entry for entry in entries()}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"{unknown[0]} is none of the models")
    sweep(options.folder, [known[name] for name in options.names] or list(known.values()), options.again)


if __name__ == "__main__":
    main()
