"""The command ``torchqat``. Errors are one sentence: exit code 2 for bad input, 1 for a failure; ``--debug`` shows more."""

import json
import os
import sys

import typer

from torchqat.cli import checkpoints, doctor, imatrix, recipes, runs, sensitivity, teacher
from torchqat.cli.output import is_json, set_json

app = typer.Typer(
    name="torchqat",
    help="Quantization-aware training: from a recipe to a checkpoint that a serving engine loads.",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _module in (runs, teacher, recipes, sensitivity, checkpoints, imatrix, doctor):
    _module.register(app)
for _command in app.registered_commands:
    _command.epilog = (
        "--json, at any place, prints one JSON object; torchqat --debug COMMAND shows where errors come from."
    )


def _print_version(asked: bool) -> None:
    if asked:
        from torchqat._version import __version__

        print(json.dumps({"version": __version__}) if is_json() else f"torchqat {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and end."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, at any place of a command."),
) -> None:
    if debug:
        os.environ["TORCHQAT_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> None:
    """Entry point; ends the process with the exit code."""
    _silence_libraries()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    set_json("--json" in arguments)
    arguments = [argument for argument in arguments if argument != "--json"]
    try:
        with _shown():
            code = app(args=arguments, standalone_mode=False)
    except KeyboardInterrupt:
        _fail("torchqat: interrupted; the same command with --resume goes on from the last checkpoint.", 130)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # how the command line itself was used
            error.show()
            sys.exit(error.exit_code)
        if os.environ.get("TORCHQAT_DEBUG"):
            raise
        _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _shown():
    """Around a command: how far it is. Runs show that themselves."""
    from torchqat.runs.progress import Progress

    return Progress().listens()


def _report(error: Exception) -> None:
    from torchqat import FileError, RecipeError, UserError
    from torchqat.errors import first_line

    if isinstance(error, RecipeError):
        _fail(str(error), 2)
    if isinstance(error, (UserError, FileError)):
        _fail(f"torchqat: {error}", 2)
    _fail(f"torchqat: failed with {type(error).__name__}: {first_line(error)} (--debug shows where)", 1)


def _fail(text: str, code: int) -> None:
    if is_json():
        print(json.dumps({"error": text, "exit_code": code}))
    print(text, file=sys.stderr)
    sys.exit(code)


def _silence_libraries() -> None:
    """Our own lines are the news of a run; the libraries' bars and notices are not."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("COMPRESSED_TENSORS_LOG_LEVEL", "ERROR")
