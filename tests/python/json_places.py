"""Places in a JSON value, for tests that change it."""

from typing import Any


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in ``value``, outer ones first."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [place for key in keys for place in ((value, key), *places(value[key]))]
