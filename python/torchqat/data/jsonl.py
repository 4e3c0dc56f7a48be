"""Lines of JSON, each an object of a form that whoever reads them expects."""

import json
from collections.abc import Callable
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
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not is_good(value):
            raise UserError(f"{path}:{number}: {rule}, but is {line[:80]}")
        found.append(value)
    return found
