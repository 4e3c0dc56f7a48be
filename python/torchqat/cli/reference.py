"""``verify DIR --reference``: a checkpoint of anybody's beside its float model, in words and a table."""

import re
from collections import Counter
from pathlib import Path

import typer

from torchqat.cli.output import is_json, result, say

# Rows of the table; the rest is for programs.
_ROWS = 24


def verify_beside(folder: str, reference: str, data: str, kind: str, samples: int, device: str) -> None:
    """Compare and tell; a checkpoint that lacks tensors, or has others, ends with code 1."""
    from torchqat.runs.foreign import compare

    found = compare(folder, reference, data, kind, samples, device or "auto", say)
    if not is_json():
        _tell(Path(folder), reference, found)
    result({"folder": folder, "reference": reference, **found.to_json()})
    if not found.weights.ok:
        raise typer.Exit(1)


def _tell(folder: Path, reference: str, found) -> None:
    weights = found.weights
    elements, floats = sum(layer.elements for layer in weights.layers), sum(weights.kept.values())
    say(
        f"{folder}: {weights.format}, {len(weights.layers)} quantized layers of {elements} elements, compared with the "
        f"float model {reference}; not with a training, of which nothing is known here."
    )
    _table(weights.worst())
    say(f"In floating point, as in the float model: {_grouped(weights.kept)} ({floats} elements).")
    if weights.changed:
        say(f"In floating point, but not the float model's: {_grouped(weights.changed)}.")
    for what, names in (("Missing", weights.missing), ("Not the model's", weights.unexpected)):
        if names:
            say(f"{what}: {_grouped(names)}.")
    if found.figures is not None:
        figures = found.figures
        say(
            f"Perplexity {figures.perplexity:.4f}, of the float model {found.perplexity:.4f}; KL to it {figures.kl:.6f} "
            f"nats a token, top-1 agreement {figures.top1_agreement:.2%}, over {figures.tokens} tokens."
        )
    for note in [*weights.notes, *found.notes]:
        say(f"Note: {note}")


def _table(layers) -> None:
    from torchqat.reports.console import print_table

    if not layers:
        return
    rows = [(layer.name, f"{layer.relative:.4%}", f"{layer.sqnr:.2f}") for layer in layers[:_ROWS]]
    print_table(["layer, those that lose most first"], ["relative error", "signal to noise, dB"], rows)
    mean = sum(layer.relative for layer in layers) / len(layers)
    more = f"; {len(layers) - _ROWS} more layers with --json" if len(layers) > _ROWS else ""
    say(f"Mean relative error {mean:.4%}, least {layers[-1].relative:.4%}{more}.")


def _grouped(names) -> str:
    """Names that differ in numbers alone as one, with how many there are."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items()) or "nothing"
