"""What commands say: sentences and tables for people, or with --json one object for programs."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import typer

_as_json = False


def set_json(wanted: bool) -> None:
    """Whether what follows is for programs."""
    global _as_json
    _as_json = wanted


def is_json() -> bool:
    return _as_json


def say(text: str) -> None:
    """A sentence for people; programs get what ``result`` gives."""
    if not _as_json:
        typer.echo(text)


def result(value: Any) -> None:
    """A command's one object for programs; people have read it already."""
    if _as_json:
        typer.echo(json.dumps(asdict(value) if is_dataclass(value) else value, indent=2, default=str))
