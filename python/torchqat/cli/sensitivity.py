"""``sensitivity``: which layers suffer from which width, and the best mix of widths under a budget."""

import math
from dataclasses import replace
from pathlib import Path

import typer

from torchqat.cli.options import DATA, DEVICE, MODEL, RECIPE, SET
from torchqat.cli.output import is_json, result, say


def register(app: typer.Typer) -> None:
    app.command()(sensitivity)


def sensitivity(
    recipe: str = RECIPE,
    model: str = MODEL,
    data: str = DATA,
    bits: str = typer.Option(
        "",
        "--bits",
        help="Widths to try, separated by commas: 2 to 8, or types such as nvfp4 and float, which is not rounded. "
        "By default 2, 3, 4 and 8; where not all layers are integers, their types, 8-bit ones and float.",
    ),
    budget: float | None = typer.Option(
        None,
        "--budget",
        help="Bits per weight in the recipe's first format, scales included: also choose a mix of widths.",
    ),
    gguf_size: float | None = typer.Option(
        None,
        "--gguf-size",
        help="Bits a weight of a whole GGUF file, as llama.cpp prints them, such as 4.83: choose llama.cpp's type for each "
        "layer so that the file is no larger. --bits are the types to try, by default q2_k to q6_k.",
    ),
    write: str = typer.Option(
        "", "--write", help="With --budget or --gguf-size: write the recipe with that mix to this file."
    ),
    plot: str = typer.Option("", "--plot", help="Draw the figures to this PNG or SVG."),
    settings: list[str] = SET,
    device: str = DEVICE,
) -> None:
    """KL to the float model with one of the recipe's layers quantized at a time, on its grid, by width."""
    from torchqat.errors import UserError
    from torchqat.evaluation.mixed_widths import mixed_recipe, mixed_widths
    from torchqat.evaluation.number_types import usual_widths
    from torchqat.evaluation.sensitivity import sensitivity as measure
    from torchqat.evaluation.sensitivity import unmeasured
    from torchqat.files import make_room, write_text
    from torchqat.runs.export_dtype import scales_of_integers, stored_bits
    from torchqat.runs.flow import run_of

    asked = _widths(bits) if bits else []
    for option, size in (("--budget", budget), ("--gguf-size", gguf_size)):
        if size is not None and not 0 < size < math.inf:
            raise UserError(f"{option} must be a number above 0, but is {size:g}.")
    if write and not budget and not gguf_size:
        raise UserError("--write needs --budget or --gguf-size, the bits per weight of the recipe to write.")
    if budget and gguf_size:
        raise UserError("--budget is of the quantized layers and --gguf-size of a whole file: give one of them.")
    if plot and Path(plot).suffix not in (".png", ".svg"):
        raise UserError(f"plot must be a .png or .svg file, but is {plot}.")
    for place in filter(None, (write, plot)):
        make_room(Path(place))
    run = run_of(recipe, model, data, "", device=device, settings=settings)
    widths = _types_of_gguf(run, asked, gguf_size) if gguf_size else asked or usual_widths(run.plan)

    def written(layers: list, mix: dict) -> str:
        return mixed_recipe(run.recipe.text, layers, mix, scales_of_integers(run.recipe.exports))

    def stored(layers: list) -> list:  # as large as they will be in the recipe's first format
        scale_bits, format = stored_bits(run), run.recipe.exports[0]
        return [replace(layer, scale_bits=scale_bits, format=format) for layer in layers]

    # Before data are read: whether anything can be measured, mixed and written.
    planned = stored(unmeasured(run.plan, widths))
    possible = mixed_widths(planned, budget) if budget else {}
    if write and budget:
        written(planned, possible)
    found = stored(measure(run.original, run.plan, run.data.calibration, widths, run.kind, run.device))
    chosen = mixed_widths(found, budget) if budget else {}
    if gguf_size:
        chosen, sentences = _for_gguf(run, found, gguf_size)
    if not is_json():
        _print(found, widths, chosen)
    result({layer.name: {"kl": layer.kl, "chosen": chosen.get(layer.name)} for layer in found})
    if gguf_size:
        for sentence in sentences:
            say(sentence)
    elif chosen:
        size = sum(layer.size(chosen[layer.name]) for layer in found) / sum(layer.elements for layer in found)
        say(f"{size:.3f} bits per weight, within {budget}.")
    if write:
        write_text(Path(write), written(found, chosen))
        say(f"The recipe with these widths is {write}.")
    if plot:
        _plot(found, widths, Path(plot))
        say(f"The figures are drawn in {plot}.")


def _types_of_gguf(run, asked: list, size: float) -> list:
    """The types to try, which give a file of that size."""
    from torchqat.checkpoints.export import check_exports
    from torchqat.evaluation.gguf_mix import check_gguf_size, types_of_gguf

    check_exports(run.original, run.plan, ["gguf"], run.kind.writes_text, pooling=run.kind.pooling)
    types = asked or types_of_gguf(run.plan)
    check_gguf_size(run.original, run.plan, types, size)
    return types


def _for_gguf(run, found, size: float) -> tuple[dict, list[str]]:
    """Types for a GGUF file of ``size`` bits a weight, and what there is to say of them."""
    from torchqat.evaluation.gguf_mix import GgufSize

    sizes = GgufSize(run.original, run.plan, found)
    mix, own = sizes.chosen(size), sizes.of_plan()
    said = [f"{mix.size:.4f} bits a weight of the GGUF file, within {size}; the layers' KLs come to {mix.kl:.6f}."]
    if own is not None:
        said.append(f"With the recipe's own types they come to {own.kl:.6f}, at {own.size:.4f} bits a weight.")
    return mix.types, said


def _widths(text: str) -> list:
    from torchqat.errors import UserError
    from torchqat.evaluation.number_types import checked_widths

    try:
        widths = checked_widths([word.strip() for word in text.split(",")])
    except UserError as error:
        raise UserError(
            f"bits must be widths from 2 to 8, or types such as nvfp4 and float, separated by commas, but is {text}."
        ) from error
    return sorted(w for w in widths if isinstance(w, int)) + [w for w in widths if not isinstance(w, int)]


def _print(found, widths: list, chosen: dict) -> None:
    from torchqat.evaluation.number_types import title_of
    from torchqat.reports.console import print_table

    rows = []
    for layer in found:
        row = [f"{layer.kl[width]:.6f}" if width in layer.kl else "–" for width in widths]
        rows.append([layer.name, *row, *([title_of(chosen[layer.name])] if chosen else [])])
    print_table(["layer"], [*map(title_of, widths), *(["chosen"] if chosen else [])], rows)


def _plot(found, widths: list, path: Path) -> None:
    from torchqat.evaluation.number_types import title_of
    from torchqat.files import pending_file
    from torchqat.reports.drawing import pyplot as drawing
    from torchqat.reports.drawing import scale_of

    pyplot = drawing()
    figure, axes = pyplot.subplots(figsize=(8, 0.22 * len(found) + 1.2), layout="constrained")
    for width in widths:
        places = [place for place, layer in enumerate(found) if width in layer.kl]
        axes.plot([max(found[i].kl[width], 1e-9) for i in places], places, "o", label=title_of(width), ms=4)
    axes.set_xscale(scale_of(max(kl, 1e-9) for layer in found for kl in layer.kl.values()))
    axes.set_xlabel("KL to the float model with this layer alone quantized (nats per token)")
    axes.set_yticks(range(len(found)), [layer.name for layer in found], fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend()
    with pending_file(path) as pending:
        figure.savefig(pending, format=path.suffix[1:], dpi=150)
    pyplot.close(figure)
