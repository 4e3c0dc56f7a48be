"""Where text and conversations come from: files, folders, Parquet and data sets of the Hub, one document after the other."""

import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torchqat.data.documents import Document, document_of, form_rule, no_utf8, pieces_of_file, unfilled
from torchqat.data.jsonl import objects_in
from torchqat.data.tables import hub_digest, hub_rows, parquet_rows
from torchqat.errors import UserError

STDLIB = "python-stdlib"
_TEXT_SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".rst", ".text", ".parquet")
# Of files that are no text of their own, though they may be characters.
_NO_TEXT = (".json", ".csv", ".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip")


@dataclass(frozen=True)
class Source:
    """One of the places that data come from, as recipes name it.

    Attributes:
        path: A file or folder of text, jsonl or Parquet, ``org/name`` of the Hub, or ``python-stdlib``.
        subset: Of a data set of the Hub that has several.
        split: Of a data set of the Hub.
        column: Of a row: its text, or its messages. Rows without a ``text`` are conversations.
        weight: How often it is drawn from, relative to others.
    """

    path: str
    subset: str = ""
    split: str = "train"
    column: str = "text"
    weight: float = 1.0

    @property
    def is_on_hub(self) -> bool:
        """Whether no file is of that name, and it has the form of a data set's."""
        path = Path(self.path)
        named = re.fullmatch(r"[\w][\w.-]*/[\w.-]+", self.path) is not None
        return named and path.suffix not in _TEXT_SUFFIXES and not path.exists()


def documents(source: Source) -> Iterator[Document]:
    """What ``source`` has, in the order of its names; each is used up before the next.

    Raises:
        UserError: It is missing or cannot be read, or a line or row has neither text nor a conversation.
    """
    if source.is_on_hub:
        yield from _of_rows(hub_rows(source.path, source.subset, source.split), source.path, source)
        return
    for file in files_of(source):
        if file.suffix.lower() == ".parquet":
            yield from _of_rows(parquet_rows(file), str(file), source)
        elif file.suffix.lower() == ".jsonl":
            yield from _of_lines(file, source)
        else:
            yield pieces_of_file(file)


def content_of(source: Source) -> str:
    """Changes with what ``source`` has; names and places do not count."""
    if source.is_on_hub:
        return hub_digest(source.path, source.subset, source.split)
    digest = sha256()
    for file in files_of(source):
        digest.update(f"{file.suffix} {file.stat().st_size}\n".encode())
        with _opened(file, "rb") as content:
            for part in iter(lambda content=content: content.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()


def files_of(source: Source) -> list[Path]:
    """The files of a source that is not on the Hub.

    Raises:
        UserError: There are none, or a subset or split of them is asked for.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if source.path == STDLIB else Path(source.path)
    if not root.exists():
        raise UserError(
            f"data must be a file or folder that exists, org/name of the Hub, or {STDLIB}, but is {source.path}."
        )
    if source.subset or source.split != "train":
        raise UserError(f"subset and split are of data sets of the Hub, but {source.path} is a file or folder.")
    files = _stdlib_files(root) if source.path == STDLIB else _text_files(root)
    if not files:
        raise UserError(no_text(source))
    return files


def no_text(source: Source) -> str:
    """What is said of a source that has none."""
    return f"data must have text ({', '.join(_TEXT_SUFFIXES)}), but {source.path} has none."


def _of_lines(file: Path, source: Source) -> Iterator[Document]:
    with _opened(file, encoding="utf-8-sig") as lines:
        rule = f"a line of jsonl must be an object with {form_rule(source.column)}"
        try:
            for value in objects_in(lines, file, lambda value: document_of(value, source.column) is not None, rule):
                yield document_of(value, source.column)
        except UnicodeDecodeError as error:
            raise UserError(no_utf8(file)) from error


def _of_rows(rows: Iterable[dict], name: str, source: Source) -> Iterator[Document]:
    for number, row in enumerate(rows, 1):
        found = document_of({key: unfilled(value) for key, value in row.items()}, source.column)
        if found is None:
            cells = ", ".join(map(_told, row.items()))
            raise UserError(
                f"Row {number} of {name} must have {form_rule(source.column)}, but has {cells}; column names another."
            )
        yield found


def _told(cell: tuple[str, Any]) -> str:
    name, value = cell
    return f"{name} (null)" if value is None else f"{name} ({type(value).__name__})"


def _opened(file: Path, mode: str = "r", **options):
    try:
        return open(file, mode, **options)
    except OSError as error:
        raise UserError(f"data must be readable, but {file} is not: {error.strerror}.") from error


def _stdlib_files(root: Path) -> list[Path]:
    """The library's own modules: no tests, no installed packages, nothing generated as a table of data."""
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "encodings", "__pycache__"}
    files = [f for f in root.rglob("*.py") if not skipped & set(f.relative_to(root).parts)]
    return sorted(f for f in files if not f.name.startswith("_sysconfigdata") and "pydoc_data" not in f.parts)


def _check_text(file: Path) -> None:
    """Other files than folders are searched for are text as well, but for tables, archives and what is no text at all."""
    if file.suffix.lower() in _TEXT_SUFFIXES:
        return
    with _opened(file, "rb") as content:
        is_binary = b"\0" in content.read(1 << 16)
    if is_binary or file.suffix.lower() in _NO_TEXT:
        raise UserError(
            f"data must be text, or conversations in jsonl or Parquet ({', '.join(_TEXT_SUFFIXES)}), but {file} is of "
            "another kind: write it as one of these, or give its text another suffix."
        )


def _text_files(root: Path) -> list[Path]:
    if root.is_file():
        _check_text(root)
        return [root]
    return sorted(file for file in root.rglob("*") if file.is_file() and file.suffix.lower() in _TEXT_SUFFIXES)
