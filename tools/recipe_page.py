"""docs/recipe.md and docs/recipe.schema.json: every key of recipes, from what their reader asks for (qat/recipe/keys.h).

    python tools/recipe_page.py docs/recipe.md docs/recipe.schema.json

A test holds both files against what this gives.
"""

import json
import sys
from pathlib import Path

from torchqat._library import RecipeKey, recipe_keys
from torchqat.recipes.schema import schema
from torchqat.recipes.shipped import shipped, summary

_HEAD = """# Recipes

Written by `tools/recipe_page.py` from what the reader of recipes asks for: types, limits and defaults are those that it uses.

A recipe is a YAML file, or the name of one that ships. `torchqat recipes` lists those, `torchqat recipes int4 > mine.yaml` copies one, and
`torchqat check RECIPE --model DIR` says what it means for a model. All that a recipe must have is `version` and `layers`:

```yaml
version: 1
layers: {weight: {dtype: int4, group_size: 128}}   # of the repeated blocks
```

`--set train.steps=300` holds in place of what the recipe says, for any key below: the value is YAML, `--set KEY=` takes the key out, and an entry
of a list goes by its number from 0, `layers.0.weight.group_size=64`. The run's folder keeps the recipe as it was used. From Python:
`torchqat.run("int4", model=..., data=..., settings={"train.steps": 300})`.

Editors complete and check recipes by `recipe.schema.json`, which lies beside this page and is what `torchqat recipes --schema` prints:
`# yaml-language-server: $schema=recipe.schema.json` on the first line of a recipe names it. What one key demands of another is not in it:
`torchqat check` knows that as well.

## Those that ship

| name | what it is for |
|---|---|
"""
_KEYS = """
## Keys

*A share or a step* is a share of the training's steps, such as `25%`, or the number of one. A default that is `–` is none.
"""


def page() -> str:
    """The whole page."""
    text = _HEAD + "".join(f"| `{name}` | {_cell(summary(file))} |\n" for name, file in shipped().items()) + _KEYS
    section = None
    for key in recipe_keys():
        top = key.path.partition(".")[0]
        if top != section:
            text += f"\n### {top}\n\n| key | holds | default | meaning |\n|---|---|---|---|\n"
            section = top
        text += f"| `{key.path}` | {_type(key)} | {_default(key)} | {_cell(key.meaning)} |\n"
    return text


def _type(key: RecipeKey) -> str:
    words = ", ".join(f"`{word}`" for word in key.words)
    limits = "" if key.least is None else f" from {_number(key.least)} to {_number(key.greatest)}"
    names = {
        "integer": f"whole number{limits}",
        "number": f"number{limits}",
        "boolean": "`true` or `false`",
        "text": "text",
        "word": f"one of {words}" if len(key.words) > 1 else words,
        "words": f"list of {words}",
        "bound": "a share or a step",
        "sides": "two whole numbers",
        "map": "map",
        "maps": "list of maps",
    }
    return _cell("; or ".join(names[type] for type in key.types))


def _default(key: RecipeKey) -> str:
    defaults = " or ".join(f"`{fallback}`" for fallback in key.fallbacks)
    if key.required:
        return f"{defaults}; in a list it must be given" if defaults else "must be given"
    return defaults or "–"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for path, text in zip(sys.argv[1:3], (page(), json.dumps(schema(), indent=2) + "\n"), strict=True):
        Path(path).write_text(text, encoding="utf-8")
