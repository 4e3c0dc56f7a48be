"""Prints what pyproject.toml requires, one requirement a line, for pip to install beside a torchqat that is still being built.

    python tools/requirements.py [EXTRA...]
"""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, whose pip brings it
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def of_extra(name: str) -> list[str]:
    """What an extra requires, and what those extras do that it names of torchqat itself."""
    found = []
    for requirement in PROJECT["optional-dependencies"][name]:
        own = re.fullmatch(r"torchqat\[(.*)\]", requirement)
        found += [one for extra in own[1].split(",") for one in of_extra(extra)] if own else [requirement]
    return found


def required(extras: list[str]) -> list[str]:
    return [*PROJECT["dependencies"], *(one for extra in extras for one in of_extra(extra))]


if __name__ == "__main__":
    print("\n".join(required(sys.argv[1:])))
