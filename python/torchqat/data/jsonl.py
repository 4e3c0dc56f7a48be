"""Lines of JSON, each an object of a form that whoever reads them expects."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torchqat.errors import UserError


def objects_of(text: str, path: Path, is_good: Callable[[Any], bool], rule: str) -> list[dict[str, Any]]:
    """The objects of ``text``, one a line; empty lines are passed over.

    Args:
        text: Of the file ``path``, which messages name.
        is_good: Whether a value is of the form that is wanted; ``None`` stands for a line that is no JSON.
        rule: What a line must be, in words that follow the place.

    Raises:
        UserError: A line is of another form.
    """
    return list(objects_in(text.splitlines(), path, is_good, rule))


def objects_in(lines: Iterable[str], path: Path, is_good: Callable[[Any], bool], rule: str) -> Iterator[dict[str, Any]]:
    """The same of ``lines``, of which one is held at a time."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not is_good(value):
            raise UserError(f"{path}:{number}: {rule}, but is {line.rstrip()[:80]}")
        yield value
