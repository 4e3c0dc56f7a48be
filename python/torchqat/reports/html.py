"""``report.html``: a run in one file that needs nothing else, on a desk or a phone, by day or by night."""

from pathlib import Path

import jinja2

from torchqat.errors import UserError
from torchqat.files import read_json, write_text
from torchqat.reports.plots import pictures
from torchqat.reports.report import REPORT, Report, Variant, read_report
from torchqat.reports.wording import MEASURES, baseline_texts, bits_texts, measured, sentences
from torchqat.verification.engines.question import Speed, speed_rows

_TITLES = {
    "quality_and_size": "Quality against size",
    "training": "Training",
    "layers": "Layer by layer",
    "weights": "Weights and scales, before and after",
    "token_kl": "KL, prediction by prediction",
}


def write_html(folder: Path) -> Path:
    """Write ``report.html`` from what the run in ``folder`` has measured, and return it.

    Raises:
        UserError: The folder has no report.
    """
    report = load_report(folder)
    drawn = pictures(report, folder)
    page = _template().render(
        title=f"torchqat: {folder.name}",
        subtitle=_subtitle(folder, report),
        report=report,
        header=_header(report),
        rows=_rows(report),
        words=sentences(report),
        pictures=[(_TITLES[name], svg) for name, (svg, _) in drawn.items()],
        speeds=_speeds(report),
        command=_command(folder),
        recipe=_text(folder / "recipe.yaml"),
        plan=_text(folder / "plan.txt"),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_pictures(folder: Path, output: Path) -> list[Path]:
    """Each picture of the run as SVG and PNG in ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (svg, png) in pictures(load_report(folder), folder).items():
        # Alone, an SVG has no page to take its ink from.
        (output / f"{name}.svg").write_text(svg.replace("currentColor", "#0b0b0b"), encoding="utf-8")
        (output / f"{name}.png").write_bytes(png)
        written += [output / f"{name}.svg", output / f"{name}.png"]
    return written


def load_report(folder: Path) -> Report:
    """The report of a run.

    Raises:
        UserError: There is none.
    """
    if not (folder / REPORT).is_file():
        raise UserError(f"RUN must be the folder of a run, with a {REPORT}, but {folder} is not.")
    return read_report(folder)


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html")


def _subtitle(folder: Path, report: Report) -> str:
    path = folder / "run.json"
    settings = read_json(path, "The settings of a run") if path.is_file() else {}
    parts = [f"model {settings['model']}"] if settings.get("model") else []
    if report.baseline.get("tokens"):
        counted = report.baseline.get("counted")
        which = f" {counted}" if counted else ""
        parts.append(f"measured on {report.baseline['tokens']} predictions{which} on held-out data")
    return ", ".join(parts)


def _header(report: Report) -> list[str]:
    return ["method", "bits/weight", "over all", *measured(report), "size, MB", "of float"]


def _rows(report: Report) -> list[dict]:
    baseline = report.baseline
    if not baseline:
        return []
    first = ["full precision", "-", "-", *baseline_texts(report), f"{baseline['bytes'] / 1e6:.2f}", "1.00x"]
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
    cells += [_cell(f"{v.bytes / 1e6:.2f}"), _cell(f"{v.bytes / report.baseline['bytes']:.2f}x")]
    return {"chosen": v.name == report.chosen, "cells": cells}


def _cell(value: str, ends: list[float] | None = None, form: str = "") -> dict[str, str]:
    return {"value": value, "range": f"{form.format(ends[0])} to {form.format(ends[1])}" if ends else ""}


def _speeds(report: Report) -> dict | None:
    columns = {name: Speed(**report.engine[name]) for name in ("float", "export") if name in report.engine}
    if not columns:
        return None
    return {"columns": list(columns), "rows": speed_rows(columns)}


def _command(folder: Path) -> str:
    settings = read_json(folder / "run.json", "The settings of a run") if (folder / "run.json").is_file() else {}
    command = "ptq" if settings.get("steps") == 0 else "run"
    options = "".join(f" --{name} {settings[name]}" for name in ("model", "data") if settings.get(name))
    return f"torchqat {command} {folder / 'recipe.yaml'}{options} --output {folder}-again"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
