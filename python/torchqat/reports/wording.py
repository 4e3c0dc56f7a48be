"""What a report says in words and numbers, for the console and for HTML alike."""

from collections.abc import Callable

from torchqat.reports.report import Report, Variant


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


# What variants are measured by, and how a table shows it.
MEASURES: dict[str, Callable[[Variant], str]] = {
    "perplexity": lambda v: _text(v.perplexity, "{:.3f}"),
    "KL": lambda v: _text(v.kl, "{:.5f}"),
    "top-1": lambda v: _text(v.top1_agreement, "{:.2%}"),
    "cosine": lambda v: _text(v.cosine, "{:.5f}"),
    "task": lambda v: _text(v.task, "{:.2%}"),
}
# What ``Variant.recovered`` calls them, in words.
_GAPS = {"perplexity": "perplexity", "kl": "KL"}


def measured(report: Report) -> list[str]:
    """Which of ``MEASURES`` this report has."""
    has = {
        "perplexity": report.baseline.get("perplexity") is not None,
        "cosine": any(variant.cosine is not None for variant in report.variants),
        "task": "task" in report.baseline,
    }
    return [name for name in MEASURES if has.get(name, True)]


def baseline_texts(report: Report, names: list[str] | None = None) -> list[str]:
    """The baseline's own figures, by default of what is measured, a dash where it is what others are measured against."""
    own = {"perplexity": ("perplexity", "{:.3f}"), "task": ("task", "{:.2%}")}
    names = measured(report) if names is None else names
    return [_text(report.baseline.get(own[n][0]), own[n][1]) if n in own else "-" for n in names]


def bits_texts(variant: Variant) -> list[str]:
    """Bits a weight of the quantized layers, and of all that are multiplied."""
    return [_text(variant.bits_per_weight, "{:.2f}"), _text(variant.bits_over_all, "{:.2f}")]


def verdict(report: Report) -> str:
    """Whether the recipe's limits are met; empty where it has none."""
    if report.accepted is None:
        return ""
    return "The recipe's accept limits are " + ("met." if report.accepted else "NOT met.")


def limit_sentences(report: Report) -> list[str]:
    """Each limit beside what was measured."""
    return [
        f"{limit.name} {limit.value:.5g}, at {'least' if limit.at_least else 'most'} {limit.bound:.5g}: "
        f"{'met' if limit.met else 'NOT met'}."
        for limit in report.limits
    ]


def size_at_16(report: Report) -> float | None:
    """Bytes of the float model with 16 bits an element; ``None`` in reports of earlier versions."""
    return report.baseline.get("bytes_at_16")


def sentences(report: Report) -> list[str]:
    """What the figures say, in words."""
    found = []
    for v in report.variants:
        found.extend(_compared(v))
        if v.recovered:
            shares = ", ".join(f"{share:.0%} of the {_GAPS[metric]} gap" for metric, share in v.recovered.items())
            found.append(f"{v.method} won back {shares} of plain rounding at its width.")
    found.extend(f"Note: {note}" for note in report.notes)
    return found


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
