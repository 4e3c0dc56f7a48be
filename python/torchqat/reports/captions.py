"""What stands beside a picture: its title, how to read it, and what it shows, for those who do not see it."""

from dataclasses import dataclass

from torchqat.reports.drawing import shown
from torchqat.reports.heat_map import layer_values
from torchqat.reports.report import Report


@dataclass(frozen=True)
class Caption:
    """Words of one picture.

    Attributes:
        title: Above it.
        reading: How to read it, a sentence or two.
        alternative: What it shows, in words.
    """

    title: str
    reading: str
    alternative: str


def caption_of(name: str, report: Report, lines: list[dict]) -> Caption:
    """Of the picture that ``plots.pictures`` calls ``name``.

    Args:
        name: Of the picture.
        report: What it is drawn from.
        lines: Of the run's metrics, in the order of steps.
    """
    title, reading, describe = _CAPTIONS[name]
    return Caption(title, reading, describe(report, lines))


def _quality(report: Report, _: list[dict]) -> str:
    points = [f"{v.method}: {v.bits_per_weight:.2f} bits, KL {v.kl:.5f}" for v in report.variants if v.kl and v.export]
    return f"KL against bits a weight of {len(points)} models. {'; '.join(points)}."


def _training(_: Report, lines: list[dict]) -> str:
    measured = [line for line in lines if line["loss"] is not None]
    loss = f"from {measured[0]['loss']:.4g} to {measured[-1]['loss']:.4g}" if measured else "that was never finite"
    widths = list(dict.fromkeys("/".join(map(str, line["weight_bits"])) for line in lines))
    checked = [line["validation_kl"] for line in lines if "validation_kl" in line]
    kl = f" KL on held-out data goes from {checked[0]:.4g} to {checked[-1]:.4g}." if checked else ""
    steps = f"over steps {lines[0]['step']} to {lines[-1]['step']}"
    return f"Training loss {loss} {steps}, at {', then '.join(widths)} bits.{kl}"


def _layers(report: Report, _: list[dict]) -> str:
    values, what, unit = layer_values(report)
    worst = sorted(values, key=values.get, reverse=bool(report.sensitivity))[:3]
    listed = ", ".join(f"{name} ({values[name]:.2f})" for name in worst)
    return f"Map of {len(values)} layers, {what}; {unit}. Those that lose most: {listed}."


def _weights(report: Report, _: list[dict]) -> str:
    return f"Two histograms of {shown(report, 'histograms').method}: the weights before and after, and the scales."


def _token_kl(report: Report, _: list[dict]) -> str:
    means = [f"{v.method} {v.kl:.5f}" for v in report.variants if v.kl_shares and v.kl]
    return f"Distribution of the KL of single predictions. Means: {'; '.join(means)}."


_CAPTIONS = {
    "quality_and_size": (
        "Quality against size",
        "Lower is nearer to the float model, further left is smaller. No other model here beats those on the line in both; "
        "upright strokes are 95 % intervals.",
        _quality,
    ),
    "training": (
        "Training",
        "The loss should fall, and rise for a while where the grey line of the bit-widths steps down. KL on held-out data "
        "decides which state is kept.",
        _training,
    ),
    "layers": (
        "Layer by layer",
        "A cell is a layer: kinds of layers down, blocks across. The darker, the more is lost there; dark layers are the "
        "ones to give more bits.",
        _layers,
    ),
    "weights": (
        "Weights and scales, before and after",
        "Above, spikes are the levels that weights are rounded to; the nearer they follow the grey shape, the less is lost. "
        "Below, scales left of the line cut off outliers for finer steps.",
        _weights,
    ),
    "token_kl": (
        "KL, prediction by prediction",
        "Further left is better. A long right tail means that a few predictions are far off while most are the float "
        "model's; below, a line that rises means that errors add up along a sequence.",
        _token_kl,
    ),
}
