"""Pictures of a run, as matplotlib figures whose ink takes the colour of the page that they stand on."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchqat.report import Report

# Stands for the page's own ink: a colour that nothing else has, exchanged in the SVG.
_INK = "#010203"
_ACCENT, _SECOND, _MUTED = "#2a78d6", "#eb6834", "#898781"
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


@contextmanager
def _figure(width: float = 7.0, height: float = 3.4) -> Iterator:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
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
    variants = [v for v in report.variants if v.kl > 0 and v.export]
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
        axes.plot(steps, [lines[s]["loss"] for s in steps], color=_ACCENT, linewidth=1.5, label="training loss")
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
    """Signal to quantization noise of each layer, kinds of layers down and blocks across; the dark ones lose most."""
    measured = [variant for variant in report.variants if variant.sqnr]
    if not measured:
        return None
    variant = next((v for v in measured if v.name == report.chosen), measured[-1])
    grid = layer_grid(variant.sqnr)
    kinds, blocks = sorted({kind for kind, _ in grid}), sorted({block for _, block in grid})
    values = [[grid.get((kind, block), float("nan")) for block in blocks] for kind in kinds]
    with _figure(height=1.2 + 0.3 * len(kinds)) as (figure, axes):
        image = axes.imshow(values, cmap="Blues_r", aspect="auto")
        axes.grid(False)
        axes.set_xticks(range(len(blocks)), [str(block) for block in blocks])
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_xlabel("block")
        axes.set_title(variant.method, fontsize=10)
        figure.colorbar(image, ax=axes, label="signal to noise, dB")
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
