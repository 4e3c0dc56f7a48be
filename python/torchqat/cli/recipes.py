"""``recipes``: those that ship, by name."""

import json

import typer

from torchqat.cli.output import result, say


def register(app: typer.Typer) -> None:
    app.command()(recipes)


def recipes(
    name: str = typer.Argument(
        "", metavar="[NAME]", help="Print this one: torchqat recipes int4 > mine.yaml copies it."
    ),
    schema: bool = typer.Option(False, "--schema", help="Print a JSON Schema of recipes, for editors."),
) -> None:
    """List the recipes that ship, each with what it is for, or print one."""
    from torchqat.errors import UserError
    from torchqat.recipes.shipped import find_shipped, shipped, summary

    if name and schema:
        raise UserError("Either NAME or --schema must be given, but both are.")
    if schema:
        from torchqat.recipes.schema import schema as schema_of

        print(json.dumps(schema_of(), indent=2))
        return
    files = shipped()
    if not name:
        width = max(map(len, files))
        for one, file in files.items():
            say(f"{one:<{width}}  {summary(file)}")
        result({one: summary(file) for one, file in files.items()})
        return
    known = find_shipped(name)
    if known is None:
        raise UserError(f"NAME must be one of {', '.join(files)}, but is {name}.")
    text = files[known].read_text(encoding="utf-8")
    say(text.rstrip("\n"))
    result({"name": known, "text": text})
