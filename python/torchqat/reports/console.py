"""Tables for people, those of reports among them."""

from collections.abc import Iterable, Iterator, Sequence

from torchqat.reports.report import Report
from torchqat.reports.wording import MEASURES, baseline_texts, bits_texts, limit_sentences, measured, sentences, verdict


def print_report(report: Report) -> None:
    """The table: one row a variant, the baseline first; then what it means, in words."""
    names = measured(report)
    print_table(["method"], ["bits/weight", "over all", *names, "size"], _rows(report, names))
    last = [*limit_sentences(report), verdict(report)] if verdict(report) else []
    for sentence in [*report.coverage, *sentences(report), *report.decision, *last]:
        _console().print(sentence, highlight=False)


def print_comparison(reports: dict[str, Report]) -> None:
    """Several runs in one table, their variants side by side; measures that none of them has are left out."""
    names = [name for name in MEASURES if any(name in measured(report) for report in reports.values())]
    rows = [[run, *row] for run, report in reports.items() for row in _rows(report, names, report.chosen)]
    print_table(["run", "method"], ["bits/weight", "over all", *names, "size"], rows)


def print_table(words: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """``rows`` below the titles of their columns, of which those of numbers are the last."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console():
    """As wide as the terminal; in a pipe, as wide as a table needs."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    return console if console.is_terminal else Console(soft_wrap=True, width=160)


def _rows(report: Report, names: list[str], chosen: str = "") -> Iterator[list[str]]:
    """The float model first, by whose figures one sees whether two runs measured on the same text."""
    if "bytes" in report.baseline:  # a run that only trained has measured nothing
        yield ["full precision", "-", "-", *baseline_texts(report, names), _size(report.baseline["bytes"])]
    for v in report.variants:
        method = f"{v.method}{' (chosen)' if v.name == chosen else ''}"
        yield [method, *bits_texts(v), *[MEASURES[name](v) for name in names], _size(v.bytes)]


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB"
