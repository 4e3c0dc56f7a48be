"""``imatrix``: what llama.cpp's own quantizers weigh errors by."""

from pathlib import Path

import typer

from torchqat.cli.options import DATA, DEVICE, MODEL
from torchqat.cli.output import result, say


def register(app: typer.Typer) -> None:
    app.command()(imatrix)


def imatrix(
    recipe: str = typer.Argument(..., metavar="RECIPE", help="A YAML recipe: its model and calibration data."),
    model: str = MODEL,
    data: str = DATA,
    output: str = typer.Option(
        "imatrix.gguf", "--output", help="The file to write, which llama-quantize --imatrix takes."
    ),
    device: str = DEVICE,
) -> None:
    """Write llama.cpp's importance matrix of the float model, from the data that ptq calibrates on."""
    from torchqat.files import make_room
    from torchqat.runs.flow import run_of
    from torchqat.runs.imatrix import imatrix as write

    make_room(Path(output))
    run = run_of(recipe, model, data, "", device=device)
    batches, settings = run.data.calibration, run.recipe.data
    sources = [settings.train] if settings.train else []
    names = write(run.original, batches, output, sources, run.kind.outputs, run.device)
    tokens = sum(int((batch["input_ids"] if isinstance(batch, dict) else batch).numel()) for batch in batches)
    say(f"{output}: {len(names)} tensors of llama.cpp, from {tokens} tokens.")
    result({"file": output, "tensors": names, "tokens": tokens})
