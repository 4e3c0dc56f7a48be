"""What a run found: ``report.json``, and the table that is printed from it."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from torchqat._version import __version__
from torchqat.evaluation.evaluate import Evaluation


@dataclass
class Variant:
    """One quantized (or control) model beside the float baseline.

    Attributes:
        name: Unique in the report.
        method: How it was made, in a few words.
        bits_per_weight: Of the quantized layers, scales and zero points included.
        perplexity: On the held-out data; ``None`` of encoders.
        kl: Mean KL to the baseline per prediction, in nats.
        top1_agreement: Share of predictions whose likeliest choice is the baseline's.
        bytes: Size of the checkpoint's tensors on disk.
        export: Folder of the checkpoint, relative to the run, or ``None``.
        recovered: Share of the naive variant's loss at the same width that training won back, by metric.
        task: Mean score on the user's task, of which 1 is the best; ``None`` without one.
        intervals: Of ``perplexity_ratio`` (to the baseline), ``kl`` and ``task_drop``: the estimate, and the ends of its
            95 % interval, by paired bootstrap over sequences or examples.
        sqnr: Of each quantized layer's weight, signal to quantization noise in dB, against the float model's; empty where
            the layer's channels were scaled or rotated, which leaves nothing to compare.
        cosine: Of encoders, mean cosine to the baseline's vectors.
        kl_shares: Shares of predictions by their KL (``Evaluation``).
        kl_by_position: Mean KL of each position in a sequence.
        histograms: Of ``weights`` and ``scales``, the ends of the bins and shares ``before`` and ``after`` (histograms.py).
    """

    name: str
    method: str
    bits_per_weight: float
    perplexity: float | None
    kl: float
    top1_agreement: float
    bytes: int
    export: str | None = None
    recovered: dict[str, float] | None = None
    task: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    sqnr: dict[str, float] = field(default_factory=dict)
    cosine: float | None = None
    kl_shares: list[float] = field(default_factory=list)
    kl_by_position: list[float] = field(default_factory=list)
    histograms: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, method: str, bits: float, figures: Evaluation, size: int, export: str | None = None):
        variant = cls(name, method, bits, figures.perplexity, figures.kl, figures.top1_agreement, size, export)
        variant.cosine = figures.cosine
        variant.kl_shares, variant.kl_by_position = figures.kl_shares, figures.kl_by_position
        return variant


@dataclass
class Report:
    """Everything a run measured.

    Attributes:
        baseline: ``perplexity``, ``bytes`` and ``tokens`` of the float model, its ``losses`` by sequence and, where there is
            a task, its mean score ``task`` and ``task_scores`` by example.
        variants: Quantized models and controls.
        accepted: Whether the recipe's limits are met; ``None`` without limits.
        validation: KL on validation text before training (``start``) and of the state that was kept (``best``), which
            was that of ``step``.
        notes: What went differently than asked, one sentence each.
        environment: Versions and device.
        chosen: The variant that mode auto ends with.
        decision: How it came to that, one sentence a step.
        engine: What the chosen variant and the float model cost in the recipe's engine.
        sensitivity: By layer and width, KL with that layer alone quantized, where it was measured.
    """

    baseline: dict[str, Any] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)
    accepted: bool | None = None
    validation: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    chosen: str = ""
    decision: list[str] = field(default_factory=list)
    engine: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

    def put(self, variant: Variant) -> None:
        self.variants = [v for v in self.variants if v.name != variant.name] + [variant]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Report":
        variants = [Variant(**variant) for variant in value.get("variants", [])]
        return cls(**{**value, "variants": variants})


def recovered(baseline_perplexity: float | None, naive: Variant, trained: Variant) -> dict[str, float]:
    """Shares of the naive variant's gap to the baseline that training closed; 1 is all of it, below 0 is a loss."""
    shares = {}
    if baseline_perplexity is not None and naive.perplexity > baseline_perplexity:
        shares["perplexity"] = (naive.perplexity - trained.perplexity) / (naive.perplexity - baseline_perplexity)
    if naive.kl > 0:
        shares["kl"] = (naive.kl - trained.kl) / naive.kl
    return shares


def environment() -> dict[str, str]:
    """What the figures of a report depend on besides recipe, model and data."""
    import transformers

    return {
        "torchqat": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def print_report(report: Report) -> None:
    """The table: one row a variant, the baseline first; then what it means, in words."""
    console = _console()
    console.print(_table(report))
    for sentence in [*sentences(report), *report.decision, *_verdict(report)]:
        console.print(sentence, highlight=False)


def print_comparison(reports: dict[str, Report]) -> None:
    """Several runs in one table, their variants side by side."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run")
    table.add_column("method")
    for column in ("bits/weight", *MEASURES, "size"):
        table.add_column(column, justify="right")
    for name, report in reports.items():
        for v in report.variants:
            method = f"{v.method}{' (chosen)' if v.name == report.chosen else ''}"
            found = [text(v) for text in MEASURES.values()]
            table.add_row(name, method, f"{v.bits_per_weight:.2f}", *found, _size(v.bytes))
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
    for column in ("bits/weight", *names, "size"):
        table.add_column(column, justify="right")
    table.add_row("full precision", "-", *baseline_texts(report), _size(report.baseline["bytes"]))
    for v in report.variants:
        table.add_row(v.method, f"{v.bits_per_weight:.2f}", *[MEASURES[n](v) for n in names], _size(v.bytes))
    return table


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


# What variants are measured by, and how a table shows it.
MEASURES: dict[str, Callable[[Variant], str]] = {
    "perplexity": lambda v: _text(v.perplexity, "{:.3f}"),
    "KL": lambda v: f"{v.kl:.5f}",
    "top-1": lambda v: f"{v.top1_agreement:.2%}",
    "cosine": lambda v: _text(v.cosine, "{:.5f}"),
    "task": lambda v: _text(v.task, "{:.2%}"),
}


def measured(report: Report) -> list[str]:
    """Which of ``MEASURES`` this report has."""
    has = {
        "perplexity": report.baseline.get("perplexity") is not None,
        "cosine": any(variant.cosine is not None for variant in report.variants),
        "task": "task" in report.baseline,
    }
    return [name for name in MEASURES if has.get(name, True)]


def baseline_texts(report: Report) -> list[str]:
    """The baseline's own figures, a dash where it is what others are measured against."""
    own = {"perplexity": ("perplexity", "{:.3f}"), "task": ("task", "{:.2%}")}
    return [_text(report.baseline[own[n][0]], own[n][1]) if n in own else "-" for n in measured(report)]


def sentences(report: Report) -> list[str]:
    """What the figures say, in words."""
    found = []
    for v in report.variants:
        found.extend(_compared(v))
        if v.recovered:
            shares = ", ".join(f"{share:.0%} of the {metric} gap" for metric, share in v.recovered.items())
            found.append(f"{v.method} won back {shares} of plain rounding at its width.")
    found.extend(f"Note: {note}" for note in report.notes)
    return found


def _verdict(report: Report) -> list[str]:
    if report.accepted is None:
        return []
    return ["The recipe's accept limits are " + ("met." if report.accepted else "NOT met.")]


def _compared(variant: Variant) -> list[str]:
    """Which differences from full precision are more than the noise of the text or task they were measured on."""
    found = []
    if "perplexity_ratio" in variant.intervals:
        ratio, low, high = variant.intervals["perplexity_ratio"]
        change = f"perplexity {ratio - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"
        found.append(f"{variant.method}: {change}{', within the noise' if low <= 1 <= high else ''}.")
    if "task_drop" in variant.intervals:
        drop, low, high = variant.intervals["task_drop"]
        change = f"task {0.0 - drop:+.2%} ({0.0 - high:+.2%} to {0.0 - low:+.2%})"
        found.append(f"{variant.method}: {change}{', within the noise' if low <= 0 <= high else ''}.")
    return found


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB"
