"""Lines of JSON, each an object of a form that whoever reads them expects."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torchqat.errors import UserError

# How JSON writes a half of what UTF-16 needs two units for.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_objects(
    path: Path, is_good: Callable[[Any], bool], rule: str, key: str = "data", form: str = "a readable jsonl file"
) -> list[dict[str, Any]]:
    """The objects of the file ``path``, one a line; empty lines are passed over.

    Args:
        path: Of the file.
        is_good: Whether a value is of the form that is wanted; ``None`` stands for a line that is no JSON.
        rule: What a line must be, in words that follow the place.
        key: What of a recipe names the file.
        form: What it must be.

    Raises:
        UserError: It cannot be read, a line is of another form (it is named), or there is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} must be {form}, but {path} is not: {error}.") from error
    # Not by splitlines, whose other ends of lines JSON allows within a string.
    found = list(objects_in(text.split("\n"), path, is_good, rule))
    if not found:
        raise UserError(f"{key} must have an example, but {path} has none.")
    return found


def objects_in(lines: Iterable[str], path: Path, is_good: Callable[[Any], bool], rule: str) -> Iterator[dict[str, Any]]:
    """Those of ``lines``, of which one is held at a time, as ``read_objects`` has them."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if _HALF.search(line) and not _is_unicode(value):
            raise UserError(
                f"{path}:{number}: a line of jsonl must be Unicode, but has half of a surrogate pair (\\ud800)."
            )
        if not is_good(value):
            raise UserError(f"{path}:{number}: {rule}, but is {line.rstrip()[:80]}")
        yield value


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
