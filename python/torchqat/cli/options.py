"""Options that commands share, and the run that they mean."""

from pathlib import Path

import typer

RECIPE = typer.Argument(..., metavar="RECIPE", help="A YAML recipe.")


MODEL = typer.Option("", "--model", help="Hugging Face folder or hub id, in place of the recipe's.")


DATA = typer.Option("", "--data", help="File or folder of text or jsonl, in place of the recipe's.")


OUTPUT = typer.Option("", "--output", help="The run's folder; build/<recipe> when not given.")


RUNS = typer.Argument(..., metavar="RUN...", help="Folders of runs; several are compared.")


RESUME = typer.Option(False, "--resume", help="Go on where an interrupted run stopped.")


def run_of(recipe: str, model: str, data: str, output: str):
    from torchqat import load_recipe
    from torchqat.runs.progress import Progress
    from torchqat.runs.run import Run

    loaded = load_recipe(recipe)
    if model:
        loaded.model.path, loaded.model.scratch = model, None
    if data:
        loaded.data.train = data
    return Run(loaded, Path(output or Path("build") / Path(recipe).stem), Progress())
