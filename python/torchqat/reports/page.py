"""What ``report.html`` says, as the rows, sentences and links that its template lays out."""

import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchqat.files import read_json
from torchqat.reports.captions import caption_of
from torchqat.reports.plots import metrics_of, pictures
from torchqat.reports.report import Report, Variant
from torchqat.reports.wording import (
    MEASURES,
    baseline_texts,
    bits_texts,
    limit_sentences,
    measured,
    sentences,
    size_at_16,
)
from torchqat.verification.engines.question import Speed, speed_rows


def page_of(folder: Path, report: Report) -> dict[str, Any]:
    """All that the template asks for, of the run in ``folder``."""
    settings = read_json(folder / "run.json", "The settings of a run") if (folder / "run.json").is_file() else {}
    return {
        "title": f"torchqat: {folder.name}",
        "subtitle": _subtitle(settings, report),
        "report": report,
        "limits": list(zip(report.limits, limit_sentences(report), strict=True)),
        "header": _header(report),
        "rows": _rows(report),
        "words": sentences(report),
        "pictures": _pictures(folder, report),
        "speeds": _speeds(report),
        "exports": _exports(report),
        "command": _command(folder, settings),
        "recipe": _text(folder / "recipe.yaml"),
        "plan": _text(folder / "plan.txt"),
    }


def _subtitle(settings: dict[str, Any], report: Report) -> str:
    parts = [f"model {settings['model']}"] if settings.get("model") else []
    if report.baseline.get("tokens"):
        counted = report.baseline.get("counted")
        which = f" {counted}" if counted else ""
        parts.append(f"measured on {report.baseline['tokens']} predictions{which} on held-out data")
    return ", ".join(parts)


def _header(report: Report) -> list[str]:
    share = "of float" if size_at_16(report) is None else "of 16 bits"
    return ["method", "bits/weight", "over all", *measured(report), "size, MB", share]


def _rows(report: Report) -> list[dict]:
    baseline = report.baseline
    if not baseline:
        return []
    size = baseline["bytes"]
    first = ["full precision", "-", "-", *baseline_texts(report), f"{size / 1e6:.2f}", _share(report, size)]
    rows = [{"chosen": False, "cells": [_cell("–" if text == "-" else text) for text in first]}]
    return rows + [_row(report, variant) for variant in report.variants]


def _row(report: Report, v: Variant) -> dict:
    ranges = {name: values[1:] for name, values in v.intervals.items()}
    ends = {
        "perplexity": ([r * report.baseline["perplexity"] for r in ranges.get("perplexity_ratio", [])], "{:.3f}"),
        "KL": (ranges.get("kl"), "{:.5f}"),
        "task": ([report.baseline["task"] - drop for drop in reversed(ranges.get("task_drop", []))], "{:.2%}"),
    }
    cells = [_cell(v.method), *map(_cell, bits_texts(v))]
    cells += [_cell(MEASURES[name](v), *ends.get(name, ())) for name in measured(report)]
    cells += [_cell(f"{v.bytes / 1e6:.2f}"), _cell(_share(report, v.bytes))]
    return {"chosen": v.name == report.chosen, "cells": cells}


def _share(report: Report, size: float) -> str:
    return f"{size / (size_at_16(report) or report.baseline['bytes']):.2f}x"


def _cell(value: str, ends: list[float] | None = None, form: str = "") -> dict[str, str]:
    return {"value": value, "range": f"{form.format(ends[0])} to {form.format(ends[1])}" if ends else ""}


def _pictures(folder: Path, report: Report) -> list[dict[str, Any]]:
    lines = metrics_of(folder, report)
    found = []
    for name, svg in pictures(report, folder, "svg").items():
        caption = caption_of(name, report, lines)
        found.append({"caption": caption, "svg": _standing(svg.decode(), name), "name": name})
    return found


def _standing(svg: str, name: str) -> str:
    """``svg`` as one of several in a page: its ids are its own, and its words are those beside it."""
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-shows" ', 1)


def _speeds(report: Report) -> dict | None:
    columns = {name: Speed(**report.engine[name]) for name in ("float", "export") if name in report.engine}
    if not columns:
        return None
    return {"columns": list(columns), "rows": speed_rows(columns)}


def _exports(report: Report) -> list[dict[str, str]]:
    """Where each export lies, as a link from the run's folder, and what it is of."""
    methods = {variant.name: variant.method for variant in report.variants}
    return [
        {
            "place": place,
            "link": f"{quote(place)}/" if not Path(place).is_absolute() else Path(place).as_uri(),
            "method": methods.get(found["variant"], found["variant"]),
            "sha256": found["sha256"],
        }
        for place, found in sorted(report.exports.items())
    ]


def _command(folder: Path, settings: dict[str, Any]) -> str:
    command = ["torchqat", "ptq" if settings.get("steps") == 0 else "run", str(folder / "recipe.yaml")]
    for name in ("model", "data", "dtype"):
        command += [f"--{name}", settings[name]] if settings.get(name) else []
    streamed = (settings.get("made_of") or {}).get("streamed")
    command += ["--stream"] if streamed else []
    return shlex.join([*command, "--output", f"{folder}-again"])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
