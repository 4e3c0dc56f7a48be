"""``export``, ``verify`` and ``evaluate``: what comes after training."""

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)
    app.command()(evaluate)


def export(
    run: str = typer.Argument(..., metavar="RUN", help="A run's folder."),
    format: str = typer.Option("compressed-tensors", "--format", help="compressed-tensors"),
    output: str = typer.Option("", "--output", help="Where to write; RUN/exports/<format> when not given."),
) -> None:
    """Write a run's trained model as a checkpoint and read it back."""
    import torchqat
    from torchqat.restore import open_run, trained_model

    job = open_run(Path(run))
    model = trained_model(job)
    folder = torchqat.export(model, output or Path(run) / "exports" / format, format, job.tokenizer)
    _print_verification(folder, torchqat.verify(folder, model))


def verify(
    folder: str = typer.Argument(..., metavar="DIR", help="An exported checkpoint."),
    run: str = typer.Option("", "--run", help="The run it came from; found above DIR when not given."),
    engine: str = typer.Option("transformers", "--engine", help="transformers"),
) -> None:
    """Compare a checkpoint, bit for bit, with the weights that training used."""
    import torchqat
    from torchqat.restore import exported_model

    if engine != "transformers":
        raise torchqat.UserError(f"engine must be transformers, but is {engine}.")
    _print_verification(Path(folder), torchqat.verify(folder, exported_model(Path(folder), run)))


def evaluate(
    model: str = typer.Argument(..., metavar="MODEL", help="A folder or hub id, quantized or not."),
    data: str = typer.Option(..., "--data", help="File or folder of text or jsonl, or python-stdlib."),
    reference: str = typer.Option("", "--reference", help="Float model to measure KL and top-1 agreement against."),
    samples: int = typer.Option(64, "--samples", min=1),
    sequence_length: int = typer.Option(256, "--sequence-length", min=2),
) -> None:
    """Perplexity of a model on held-out text and, with --reference, its distance from the float model."""
    from torchqat import evaluate as measure
    from torchqat.data import load_corpus, tokenize, windows
    from torchqat.models import load_tokenizer
    from torchqat.restore import load_any

    loaded = load_any(model)
    tokens = tokenize(load_tokenizer(model), load_corpus(data).held_out)
    batches = windows(tokens, samples, sequence_length)
    figures = measure(loaded, batches, load_any(reference) if reference else None)
    typer.echo(f"perplexity {figures.perplexity:.4f} over {figures.tokens} tokens")
    if reference:
        typer.echo(f"KL to the reference {figures.kl:.6f} nats a token, top-1 agreement {figures.top1_agreement:.2%}")


def _print_verification(folder: Path, verification) -> None:
    typer.echo(f"{folder}: {verification}.")
    if not verification.ok:
        raise typer.Exit(1)
