"""Text on disk, and examples: what a run trains on, and what is held out from it."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchqat.data.examples import Examples
from torchqat.data.jsonl import objects_of
from torchqat.errors import UserError

STDLIB = "python-stdlib"
_TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".rst", ".text")
# Every n-th file is held out.
_HELD_OUT = 10


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out from them."""

    train: list[str]
    held_out: list[str]


def load_corpus(source: str, evaluation: str = "") -> Corpus:
    """The documents of ``source``: a file or folder of text or jsonl, or ``python-stdlib``.

    A folder is read in the order of its names; every tenth document is held out, or the last tenth of a single one. A
    copy of a document that is trained on is not held out. With ``evaluation`` nothing is held out from ``source``.

    Raises:
        UserError: The source is missing, has no text, or a line of jsonl has no ``text``.
    """
    documents = _documents(source)
    if evaluation:
        return Corpus(documents, _documents(evaluation))
    if len(documents) == 1:
        text = documents[0]
        cut = max(1, len(text) - len(text) // _HELD_OUT)
        return Corpus([text[:cut]], [text[cut:]])
    held_out = documents[_HELD_OUT // 2 :: _HELD_OUT] or documents[-1:]
    kept = [document for index, document in enumerate(documents) if index % _HELD_OUT != _HELD_OUT // 2]
    train = kept if len(documents) > _HELD_OUT // 2 else documents[:-1]
    trained_on = set(train)
    unseen = [document for document in held_out if document not in trained_on]
    if not unseen:
        raise UserError(f"data must have text to hold out, but all documents of {source} are copies of each other.")
    return Corpus(train, unseen)


def _documents(source: str) -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"]) if source == STDLIB else Path(source)
    if not root.exists():
        raise UserError(f"data must be a file or folder that exists, or {STDLIB}, but is {source}.")
    files = _stdlib_files(root) if source == STDLIB else _text_files(root)
    documents = [text for file in files for text in _read(file) if text.strip()]
    if not documents:
        raise UserError(f"data must have text ({', '.join(_TEXT_SUFFIXES)}), but {source} has none.")
    return documents


def _stdlib_files(root: Path) -> list[Path]:
    """The library's own modules: no tests, no installed packages, nothing generated as a table of data."""
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "encodings", "__pycache__"}
    files = [f for f in root.rglob("*.py") if not skipped & set(f.relative_to(root).parts)]
    return sorted(f for f in files if not f.name.startswith("_sysconfigdata") and "pydoc_data" not in f.parts)


def _text_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(file for file in root.rglob("*") if file.is_file() and file.suffix in _TEXT_SUFFIXES)


def _read(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"data must be readable, but {file} is not: {error.strerror}.") from error
    if file.suffix != ".jsonl":
        return [text]
    rule = 'a line of jsonl must be an object with a "text"'
    return [line["text"] for line in objects_of(text, file, _has_text, rule)]


def _has_text(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str)


def held_out(examples: Examples) -> tuple[Examples, Examples]:
    """Those to train on, and every tenth, held out.

    Raises:
        UserError: There are fewer than 20.
    """
    places = torch.arange(len(examples))
    if len(examples) < 2 * _HELD_OUT:
        raise UserError(f"data must have at least {2 * _HELD_OUT} examples to hold some out, but has {len(examples)}.")
    chosen = places % _HELD_OUT == _HELD_OUT // 2
    return examples.part(places[~chosen]), examples.part(places[chosen])
