"""Pictures of a run."""

import json
import math
from pathlib import Path

from torchqat.evaluation.evaluate import KL_BINS
from torchqat.reports.drawing import ACCENT, MUTED, SECOND, figure, rendered, scale_of, shown
from torchqat.reports.heat_map import layers_picture
from torchqat.reports.report import Report

# Lines that can be told apart in one picture.
_MOST_LINES = 4


def pictures(report: Report, folder: Path, form: str) -> dict[str, bytes]:
    """The pictures that there is something to draw for: by name, as ``svg`` or ``png``."""
    drawn = {
        "quality_and_size": _quality(report, form),
        "training": _training(metrics_of(folder, report), form),
        "layers": layers_picture(report, form),
        "weights": _weights(report, form),
        "token_kl": _token_kl(report, form),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def metrics_of(folder: Path, report: Report) -> list[dict]:
    """What was logged while the model was trained that the run ends with, a line a step, the last of those of one step."""
    path = (folder / "candidates" / report.chosen if report.chosen else folder) / "metrics.jsonl"
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.is_file() else ()
    by_step = {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that none other beats in both numbers, which are better when smaller, in order of the first."""
    front: list[int] = []
    best = float("inf")
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if points[index][1] < best:
            best = points[index][1]
            front.append(index)
    return front


def _quality(report: Report, form: str) -> bytes | None:
    """KL against bits a weight; what lies on the front is not beaten in both."""
    variants = [v for v in report.variants if v.kl and math.isfinite(v.kl) and v.export]
    if not variants:
        return None
    points = [(v.bits_per_weight, v.kl) for v in variants]
    front = pareto(points)
    middle = (min(x for x, _ in points) + max(x for x, _ in points)) / 2
    with figure() as (drawn, axes):
        axes.plot(*zip(*(points[i] for i in front), strict=True), color=ACCENT, linewidth=2, zorder=2)
        for index, variant in enumerate(variants):
            chosen = variant.name == report.chosen
            colour = SECOND if chosen else ACCENT if index in front else MUTED
            axes.scatter(*points[index], s=70 if chosen else 45, color=colour, zorder=3)
            label = f"{variant.method}{' (chosen)' if chosen else ''}"
            right = points[index][0] > middle  # where a label would leave the picture
            place = {"xytext": (-8, 6), "ha": "right"} if right else {"xytext": (8, 4)}
            axes.annotate(label, points[index], textcoords="offset points", fontsize=9, **place)
            if "kl" in variant.intervals:
                _, low, high = variant.intervals["kl"]
                axes.vlines(variant.bits_per_weight, max(low, 1e-9), high, color=colour, alpha=0.5, linewidth=1.5)
        axes.set_yscale("log")
        axes.margins(x=0.25, y=0.15)
        axes.set_xlabel("bits a weight, scales included")
        axes.set_ylabel("KL to full precision, nats a prediction")
        return rendered(drawn, form)


def _training(found: list[dict], form: str) -> bytes | None:
    """Loss over steps, the bit-widths in force behind it, and the KL on held-out text where it was measured."""
    if not found:
        return None
    lines = {line["step"]: line for line in found}
    steps = list(lines)
    with figure() as (drawn, axes):
        axes.plot(
            steps,
            [math.nan if lines[s]["loss"] is None else lines[s]["loss"] for s in steps],
            color=ACCENT,
            linewidth=1.5,
            label="training loss",
        )
        values = [line["loss"] for line in lines.values()]
        checked = [s for s in steps if lines[s].get("validation_kl") is not None]
        if checked:
            kl = [lines[s]["validation_kl"] for s in checked]
            axes.plot(checked, kl, "o-", color=SECOND, linewidth=2, markersize=5, label="KL on held-out data")
            values += kl
        axes.set_yscale(scale_of(values))
        axes.set_xlabel("step")
        widths = axes.twinx()
        widths.grid(False)
        widths.spines["right"].set_visible(True)
        for column in range(max(len(line["weight_bits"]) for line in lines.values())):
            bits = [line["weight_bits"][min(column, len(line["weight_bits"]) - 1)] for line in map(lines.get, steps)]
            widths.step(steps, bits, where="post", color=MUTED, linewidth=1.5)
        widths.set_ylabel("bits of the weights")
        widths.set_ylim(0, 9)
        axes.legend(frameon=False, loc="upper right")
        return rendered(drawn, form)


def _weights(report: Report, form: str) -> bytes | None:
    """Weights of the float model and as they are deployed; below, the scales over those that the float range gives."""
    variant = shown(report, "histograms")
    if variant is None:
        return None
    with figure(height=4.6, rows=2) as (drawn, (above, below)):
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
                axes.stairs(found["before"], edges, fill=True, color=MUTED, alpha=0.5, label="full precision")
            axes.stairs(found["after"], edges, color=ACCENT, linewidth=1.5, label=variant.method)
            axes.set_xlabel(label)
            axes.set_ylabel("share")
        above.legend(frameon=False)
        below.axvline(0, color=MUTED, linewidth=1)
        return rendered(drawn, form)


def _bins(histogram: dict[str, list[float]]) -> int:
    return len(histogram["after"])


def _token_kl(report: Report, form: str) -> bytes | None:
    """How the KLs of single predictions are spread; and, of sequences, the mean at each position."""
    compared = [v for v in report.variants if v.kl_shares and v.kl][-_MOST_LINES:]
    if not compared:
        return None
    along = any(len(v.kl_by_position) > 1 for v in compared)
    with figure(height=4.6 if along else 3.0, rows=2 if along else 1) as (drawn, axes):
        above, below = axes if along else (axes, None)
        colours = dict(zip([v.name for v in compared], (ACCENT, MUTED, "#1a9850", "#984ea3"), strict=False))
        for v in compared:
            colour = SECOND if v.name == report.chosen else colours[v.name]
            above.stairs(v.kl_shares, [10**x for x in KL_BINS], color=colour, linewidth=1.5, label=v.method)
            if below is not None:
                below.plot(range(1, len(v.kl_by_position) + 1), v.kl_by_position, color=colour, linewidth=1)
        above.set_xscale("log")
        above.set_xlabel("KL of one prediction, nats")
        above.set_ylabel("share of predictions")
        above.legend(frameon=False, fontsize=9)
        if below is not None:
            below.set_yscale(scale_of(kl for v in compared for kl in v.kl_by_position))
            below.set_xlabel("position in the sequence")
            below.set_ylabel("mean KL, nats")
        return rendered(drawn, form)
