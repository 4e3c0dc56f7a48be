"""``teacher``: the float model's answers, written once for the trainings that learn from them."""

from pathlib import Path

import typer

from torchqat.cli.options import DATA, DEVICE, MODEL, RECIPE, SET, STEPS
from torchqat.cli.output import result, say


def register(app: typer.Typer) -> None:
    app.command()(teacher)


def teacher(
    recipe: str = RECIPE,
    model: str = MODEL,
    data: str = DATA,
    output: str = typer.Option(..., "--output", "-o", help="Folder of the answers; an interrupted writing goes on."),
    settings: list[str] = SET,
    steps: int | None = STEPS,
    top: int = typer.Option(64, "--top", min=1, help="Likeliest tokens that are kept; all others count as one."),
    device: str = DEVICE,
) -> None:
    """Write what the float model says to every batch of a training, for `distill: {teacher: FOLDER}`."""
    from torchqat.runs.flow import run_of
    from torchqat.runs.teacher import write_teacher

    run = run_of(recipe, model, data, device=device, settings=settings, steps=steps)
    size = write_teacher(run, Path(output), top)
    say(f"{output} has the answers to {run.recipe.train.steps} steps, {size / 1e6:.1f} MB; distill.teacher names it.")
    result({"folder": output, "steps": run.recipe.train.steps, "top": top, "bytes": size})
