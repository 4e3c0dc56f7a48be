"""The tables that are printed from reports."""

from torchqat.reports.report import Report
from torchqat.reports.wording import MEASURES, baseline_texts, bits_texts, limit_sentences, measured, sentences, verdict


def print_report(report: Report) -> None:
    """The table: one row a variant, the baseline first; then what it means, in words."""
    console = _console()
    console.print(_table(report))
    last = [*limit_sentences(report), verdict(report)] if verdict(report) else []
    for sentence in [*report.coverage, *sentences(report), *report.decision, *last]:
        console.print(sentence, highlight=False)


def print_comparison(reports: dict[str, Report]) -> None:
    """Several runs in one table, their variants side by side."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    table.add_column("method")
    for column in ("bits/weight", "over all", *MEASURES, "size"):
        table.add_column(column, justify="right")
    for name, report in reports.items():
        for v in report.variants:
            method = f"{v.method}{' (chosen)' if v.name == report.chosen else ''}"
            found = [text(v) for text in MEASURES.values()]
            table.add_row(name, method, *bits_texts(v), *found, _size(v.bytes))
    _console().print(table)


def _console():
    """As wide as the terminal; in a pipe, as wide as a table needs."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=160)


def _table(report: Report):
    from rich.table import Table

    names = measured(report)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method")
    for column in ("bits/weight", "over all", *names, "size"):
        table.add_column(column, justify="right")
    if "bytes" in report.baseline:  # a run that only trained has measured nothing
        table.add_row("full precision", "-", "-", *baseline_texts(report), _size(report.baseline["bytes"]))
    for v in report.variants:
        table.add_row(v.method, *bits_texts(v), *[MEASURES[n](v) for n in names], _size(v.bytes))
    return table


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB"
