"""The recipes that ship, by name: ``int4`` is ``int4_qat.yaml``, ``kv-cache`` is ``kv_cache.yaml``."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torchqat._library import Recipe, parse_recipe
from torchqat._library import load_recipe as load_file
from torchqat.errors import UserError

# In the sources a link to recipes/, of which a wheel has a copy.
_FOLDER = Path(__file__).with_name("shipped")


def shipped() -> dict[str, Path]:
    """The file of each recipe that ships, by its name."""
    return {_name(file): file for file in sorted(_FOLDER.glob("*.yaml"))}


def summary(file: Path) -> str:
    """What a recipe that ships is for: its first comment."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def find_shipped(name: str) -> str | None:
    """The name of a recipe that ships, from it or from that of its file; ``None`` for any other word."""
    return next((known for known, file in shipped().items() if name in (known, file.stem, file.name)), None)


def load_recipe(recipe: str | Path, settings: Mapping[str, Any] | Iterable[str] = ()) -> Recipe:
    """A recipe that ships, or one of your own.

    Args:
        recipe: A name such as ``int4`` (``torchqat recipes`` lists them), or a YAML file. Of a name such as
            ``int4_qat.yaml``, the file that is there, if one is; else the one that ships.
        settings: What holds in place of what the recipe says, by key: ``{"train.steps": 300, "layers.0.weight.dtype":
            "int3"}``; ``None`` takes a key out. Or ``KEY=VALUE`` each, with the value in YAML, or nothing to take it out.

    Returns:
        Its ``text`` is that with ``settings``.

    Raises:
        RecipeError: Every problem of it, with file, line and column, or with the setting that it comes from.
        UserError: There is no recipe of that name.
    """
    asked, name = as_settings(settings), str(recipe)
    known = None if Path(name).is_file() and Path(name).suffix else find_shipped(name)
    if known is not None:
        return parse_recipe(shipped()[known].read_text(encoding="utf-8"), known, asked)
    if not Path(name).suffix and not Path(name).is_file():
        near = get_close_matches(name, shipped(), 1)
        raise UserError(
            f"RECIPE must be a YAML file or one of {', '.join(shipped())}, but is {name}"
            f"{f'; did you mean {near[0]}?' if near else '.'}"
        )
    try:
        Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"RECIPE must be a YAML file in UTF-8, but {name} is not.") from error
    except OSError:
        pass  # which the reader says
    return load_file(name, asked)


def as_settings(settings: Mapping[str, Any] | Iterable[str]) -> list[str]:
    """``KEY=VALUE`` each, as the reader takes them; JSON is YAML."""
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{key}={'' if value is None else json.dumps(value, default=str)}" for key, value in settings.items()]


def _name(file: Path) -> str:
    return file.stem.removesuffix("_qat").replace("_", "-")
