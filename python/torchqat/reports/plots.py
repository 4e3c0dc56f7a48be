"""Pictures of a run, as matplotlib figures whose ink takes the colour of the page that they stand on."""

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchqat.evaluation.evaluate import KL_BINS
from torchqat.extras import needs
from torchqat.reports.report import Report, Variant

# Stands for the page's own ink: a colour that nothing else has, exchanged in the SVG.
_INK = "#010203"
_ACCENT, _SECOND, _MUTED = "#2a78d6", "#eb6834", "#898781"
# Lines that can be told apart in one picture.
_MOST_LINES = 4
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _MUTED,
    "grid.alpha": 0.25,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "torchqat",  # the same picture, the same bytes
}


def pyplot():
    """matplotlib's, for files alone."""
    with needs("report", "A picture"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    return pyplot


@contextmanager
def _figure(width: float = 7.0, height: float = 3.4, rows: int = 1) -> Iterator:
    plt = pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        for one in figure.axes:
            one.patch.set_alpha(0)
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def pictures(report: Report, folder: Path) -> dict[str, tuple[str, bytes]]:
    """The pictures that there is something to draw for: by name, SVG text and PNG bytes."""
    trained = folder / "candidates" / report.chosen if report.chosen else folder
    drawn = {
        "quality_and_size": _quality(report),
        "training": _training(trained / "metrics.jsonl"),
        "layers": _layers(report),
        "weights": _weights(report),
        "token_kl": _token_kl(report),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that none other beats in both numbers, which are better when smaller, in order of the first."""
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            best = points[index][1]
            front.append(index)
    return front


def _quality(report: Report) -> tuple[str, bytes] | None:
    """KL against bits a weight; what lies on the front is not beaten in both."""
    variants = [v for v in report.variants if v.kl and v.export]
    if not variants:
        return None
    points = [(v.bits_per_weight, v.kl) for v in variants]
    front = pareto(points)
    with _figure() as (figure, axes):
        axes.plot(*zip(*(points[i] for i in front), strict=True), color=_ACCENT, linewidth=2, zorder=2)
        for index, variant in enumerate(variants):
            chosen = variant.name == report.chosen
            colour = _SECOND if chosen else _ACCENT if index in front else _MUTED
            axes.scatter(*points[index], s=70 if chosen else 45, color=colour, zorder=3)
            label = f"{variant.method}{' (chosen)' if chosen else ''}"
            axes.annotate(label, points[index], xytext=(8, 4), textcoords="offset points", fontsize=9)
            if "kl" in variant.intervals:
                _, low, high = variant.intervals["kl"]
                axes.vlines(variant.bits_per_weight, max(low, 1e-9), high, color=colour, alpha=0.5, linewidth=1.5)
        axes.set_yscale("log")
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel("bits a weight, scales included")
        axes.set_ylabel("KL to full precision, nats a prediction")
        return _rendered(figure)


def _training(path: Path) -> tuple[str, bytes] | None:
    """Loss over steps, the bit-widths in force behind it, and the KL on held-out text where it was measured."""
    lines = {line["step"]: line for line in map(json.loads, path.read_text().splitlines())} if path.is_file() else {}
    if not lines:
        return None
    steps = sorted(lines)
    with _figure() as (figure, axes):
        axes.plot(
            steps,
            [math.nan if lines[s]["loss"] is None else lines[s]["loss"] for s in steps],
            color=_ACCENT,
            linewidth=1.5,
            label="training loss",
        )
        checked = [s for s in steps if "validation_kl" in lines[s]]
        if checked:
            kl = [lines[s]["validation_kl"] for s in checked]
            axes.plot(checked, kl, "o-", color=_SECOND, linewidth=2, markersize=5, label="KL on held-out data")
        axes.set_yscale("log")
        axes.set_xlabel("step")
        widths = axes.twinx()
        widths.grid(False)
        widths.spines["right"].set_visible(True)
        for column in range(max(len(line["weight_bits"]) for line in lines.values())):
            bits = [line["weight_bits"][min(column, len(line["weight_bits"]) - 1)] for line in map(lines.get, steps)]
            widths.step(steps, bits, where="post", color=_MUTED, linewidth=1.5)
        widths.set_ylabel("bits of the weights")
        widths.set_ylim(0, 9)
        axes.legend(frameon=False, loc="upper right")
        return _rendered(figure)


def _layers(report: Report) -> tuple[str, bytes] | None:
    """Each layer, kinds of layers down and blocks across; the dark ones lose most.

    KL with the layer alone quantized, where that was measured; else the signal to quantization noise of its weight.
    """
    if report.sensitivity:
        width = next(iter(next(iter(report.sensitivity.values()))))  # the least
        values = {n: math.log10(max(kl[width], 1e-10)) for n, kl in report.sensitivity.items() if width in kl}
        how = f"at {width} bits" if width.isdigit() else f"in {width}"
        return _heat_map(values, "Blues", f"each layer alone {how}", "KL to full precision, powers of ten")
    variant = _shown(report, "sqnr")
    if variant is None:
        return None
    return _heat_map(variant.sqnr, "Blues_r", variant.method, "signal to noise, dB")


def _heat_map(values: dict[str, float], colours: str, title: str, label: str) -> tuple[str, bytes]:
    grid = layer_grid(values)
    kinds, blocks = sorted({kind for kind, _ in grid}), sorted({block for _, block in grid})
    cells = [[grid.get((kind, block), float("nan")) for block in blocks] for kind in kinds]
    with _figure(height=1.2 + 0.3 * len(kinds)) as (figure, axes):
        image = axes.imshow(cells, cmap=colours, aspect="auto")
        axes.grid(False)
        axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_xlabel("block")
        axes.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axes, label=label)
        return _rendered(figure)


def _shown(report: Report, attribute: str) -> Variant | None:
    """The variant that pictures of one are of: the chosen one, else the last that has what is drawn."""
    found = [variant for variant in report.variants if getattr(variant, attribute)]
    return next((variant for variant in found if variant.name == report.chosen), found[-1] if found else None)


def _weights(report: Report) -> tuple[str, bytes] | None:
    """Weights of the float model and as they are deployed; below, the scales over those that the float range gives."""
    variant = _shown(report, "histograms")
    if variant is None:
        return None
    with _figure(height=4.6, rows=2) as (figure, (above, below)):
        for axes, kind, label in (
            (above, "weights", "standard deviations of the layer"),
            (below, "scales", "scale over that of the float range, powers of two"),
        ):
            found = variant.histograms[kind]
            edges = [
                found["ends"][0] + (found["ends"][1] - found["ends"][0]) * i / _bins(found)
                for i in range(_bins(found) + 1)
            ]
            if "before" in found:
                axes.stairs(found["before"], edges, fill=True, color=_MUTED, alpha=0.5, label="full precision")
            axes.stairs(found["after"], edges, color=_ACCENT, linewidth=1.5, label=variant.method)
            axes.set_xlabel(label)
            axes.set_ylabel("share")
        above.legend(frameon=False)
        below.axvline(0, color=_MUTED, linewidth=1)
        return _rendered(figure)


def _bins(histogram: dict[str, list[float]]) -> int:
    return len(histogram["after"])


def _token_kl(report: Report) -> tuple[str, bytes] | None:
    """How the KLs of single predictions are spread; and, of sequences, the mean at each position."""
    shown = [v for v in report.variants if v.kl_shares and v.kl][-_MOST_LINES:]
    if not shown:
        return None
    along = any(len(v.kl_by_position) > 1 for v in shown)
    with _figure(height=4.6 if along else 3.0, rows=2 if along else 1) as (figure, axes):
        above, below = axes if along else (axes, None)
        colours = dict(zip([v.name for v in shown], (_ACCENT, _MUTED, "#1a9850", "#984ea3"), strict=False))
        for v in shown:
            colour = _SECOND if v.name == report.chosen else colours[v.name]
            above.stairs(v.kl_shares, [10**x for x in KL_BINS], color=colour, linewidth=1.5, label=v.method)
            if below is not None:
                below.plot(range(1, len(v.kl_by_position) + 1), v.kl_by_position, color=colour, linewidth=1)
        above.set_xscale("log")
        above.set_xlabel("KL of one prediction, nats")
        above.set_ylabel("share of predictions")
        above.legend(frameon=False, fontsize=9)
        if below is not None:
            below.set_yscale("log")
            below.set_xlabel("position in the sequence")
            below.set_ylabel("mean KL, nats")
        return _rendered(figure)


def layer_grid(values: dict[str, float]) -> dict[tuple[str, int], float]:
    """Values by kind of layer and number of block, from names such as ``model.layers.3.mlp.up_proj``."""
    grid = {}
    for name, value in values.items():
        found = re.search(r"\.(\d+)\.(.+)$", name)
        grid[(found[2], int(found[1])) if found else (name, 0)] = value
    return grid


def _rendered(figure) -> tuple[str, bytes]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.patch.set_facecolor("white")
    figure.patch.set_alpha(1)
    figure.savefig(png, format="png", dpi=144, metadata={"Software": None})
    text = svg.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    return text, png.getvalue()
