"""docs/cli.md: every command with its arguments and options, asked of the functions that the command line is made of.

    python tools/cli_reference.py docs/cli.md

A test holds the file against what this gives.
"""

import inspect
import re
import sys
import typing
from pathlib import Path

from torchqat.cli import app
from typer.models import ArgumentInfo, OptionInfo

HEAD = """# Commands

Asked of the command line by `tools/cli_reference.py`; `torchqat COMMAND --help` says the same. `--json`, at any place,
prints one JSON object; `torchqat --debug COMMAND` shows where an error comes from. The exit code is 0, or 1 where something
failed or differs, or 2 for what cannot be done as it was asked.
"""
_WORDS = {str: "text", int: "whole number", float: "number"}


def reference() -> str:
    """The whole page."""
    commands = {_name(command): command.callback for command in app.registered_commands}
    lines = [HEAD, "| command | does |", "|---|---|"]
    lines += [f"| [`{name}`](#torchqat-{name}) | {_first(found)} |" for name, found in commands.items()]
    for name, found in commands.items():
        lines += ["", *_entry(name, found)]
    return "\n".join(lines) + "\n"


def _name(command) -> str:
    return command.name or command.callback.__name__.replace("_", "-")


def _entry(name: str, function) -> list[str]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    arguments = [one for one in parameters if isinstance(one.default, ArgumentInfo)]
    options = [one for one in parameters if isinstance(one.default, OptionInfo)]
    usage = " ".join(["torchqat", name, *map(_place, arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## torchqat {name}", "", *_paragraphs(function), "```", usage, "```"]
    if arguments or options:
        lines += ["", "| | holds | meaning |", "|---|---|---|"]
    for one in [*arguments, *options]:
        info = one.default
        names = info.param_decls or ((info.metavar or one.name.upper()).strip("[]"),)
        lines.append(f"| {', '.join(f'`{n}`' for n in names)} | {_holds(one)} | {_in_table(info.help)} |")
    return lines


def _place(argument: inspect.Parameter) -> str:
    word = (argument.default.metavar or argument.name.upper()).strip("[]")
    return word if argument.default.default is ... else f"[{word}]"


def _holds(parameter: inspect.Parameter) -> str:
    """What is given, at least how much, and what holds without it."""
    info, kinds = parameter.default, typing.get_args(parameter.annotation) or (parameter.annotation,)
    if bool in kinds:
        return "–"
    words = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    shown = f"`{info.metavar}`" if isinstance(info, OptionInfo) and info.metavar else words[0]
    if info.min:
        shown += f" from {info.min:g}"
    return shown if info.default in (..., None, "", 0, []) else f"{shown}; `{info.default}`"


def _first(function) -> str:
    return _in_table(inspect.getdoc(function).split("\n\n")[0])


def _paragraphs(function) -> list[str]:
    lines = []
    for text in inspect.getdoc(function).split("\n\n"):
        lines += [_marked(text), ""]
    return lines


def _in_table(text: str | None) -> str:
    return _marked(text or "").replace("|", "\\|").replace("<", "&lt;")


def _marked(text: str) -> str:
    """On one line, options as code."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]+)", r"`\1`", " ".join(text.split()))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
