"""A JSON Schema of recipes, for editors: which keys there are, what each may hold, and what it means.

What one key demands of another is not in it; ``torchqat check`` knows that as well.
"""

from typing import Any

from torchqat._library import RecipeKey, recipe_keys

# The map that needs one of two keys.
_EITHER = ("layers.weight", ("dtype", "mix"))


def schema() -> dict[str, Any]:
    """The schema, of draft 2020-12, made of what the reader of recipes asks for."""
    keys = {key.path: key for key in recipe_keys()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of torchqat",
        **_map(keys, "", in_list=False),
        "type": "object",
    }


def _map(keys: dict[str, RecipeKey], path: str, in_list: bool) -> dict[str, Any]:
    """A map that has the keys below ``path``. One that must be given and has a default must be only ``in_list``."""
    below = {name.rpartition(".")[2]: key for name, key in keys.items() if name.rpartition(".")[0] == path}
    found = {
        "type": ["object", "null"],
        "properties": {name: _value(keys, key) for name, key in below.items()},
        "additionalProperties": False,
    }
    required = [name for name, key in below.items() if key.required and (in_list or not key.fallbacks)]
    if path == _EITHER[0]:
        return found | {"oneOf": [{"required": [name]} for name in _EITHER[1]]}
    return found | ({"required": required} if required else {})


def _value(keys: dict[str, RecipeKey], key: RecipeKey) -> dict[str, Any]:
    forms = [_form(keys, key, type) for type in key.types]
    found = {"description": key.meaning, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}
    return found


def _form(keys: dict[str, RecipeKey], key: RecipeKey, type: str) -> dict[str, Any]:
    """What ``key`` may hold as one of its types (``qat/recipe/keys.h``)."""
    if type in ("integer", "number"):
        whole = type == "integer"
        return {"type": type, "minimum": _bound(key.least, whole), "maximum": _bound(key.greatest, whole)}
    if type == "bound":
        share = {"type": "string", "pattern": r"^(100(\.0*)?|[0-9]{1,2}(\.[0-9]*)?)%$"}
        return {"anyOf": [share, {"type": "integer", "minimum": 0}]}
    simple = {
        "boolean": {"type": "boolean"},
        "text": {"type": "string", "minLength": 1},
        "word": {"enum": list(key.words)},
        "words": {"type": "array", "items": {"enum": list(key.words)}},
        "sides": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
    }
    if type in simple:
        return simple[type]
    if type == "map":
        return _map(keys, key.path, in_list=False)
    return {"type": "array", "items": _map(keys, key.path, in_list=True)}


def _bound(value: float | None, whole: bool) -> float | int | None:
    return int(value) if whole and value is not None else value
