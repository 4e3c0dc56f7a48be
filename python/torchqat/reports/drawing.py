"""What pictures of a run have in common: matplotlib figures whose ink takes the colour of the page that they stand on."""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torchqat.extras import needs
from torchqat.reports.report import Report, Variant

_WIDTH = 7.0  # inches
# Stands for the page's own ink: a colour that nothing else has, exchanged in the SVG.
_INK = "#010203"
ACCENT, SECOND, MUTED = "#2a78d6", "#eb6834", "#898781"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": MUTED,
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
def figure(height: float = 3.4, rows: int = 1) -> Iterator:
    """A figure, and its axes one above the other, as wide as the page; ``height`` in inches. Closed when the block ends."""
    plt = pyplot()
    with plt.rc_context(_STYLE):
        drawn, axes = plt.subplots(rows, figsize=(_WIDTH, height), layout="constrained")
        drawn.patch.set_alpha(0)
        for one in drawn.axes:
            one.patch.set_alpha(0)
        try:
            yield drawn, axes
        finally:
            plt.close(drawn)


def scale_of(values: Iterable[float | None]) -> str:
    """``log`` where that shows ``values``, of which some are positive and none negative; else ``linear``."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return "log" if finite and min(finite) >= 0 and max(finite) > 0 else "linear"


def shown(report: Report, attribute: str) -> Variant | None:
    """The variant that pictures of one are of: the chosen one, else the last that has what is drawn."""
    found = [variant for variant in report.variants if getattr(variant, attribute)]
    return next((variant for variant in found if variant.name == report.chosen), found[-1] if found else None)


def rendered(figure, form: str) -> bytes:
    """As ``svg``, text in UTF-8, or as ``png``. Drawing costs most of a picture: what nobody asked for is not drawn."""
    file = io.BytesIO()
    if form == "png":
        figure.patch.set_facecolor("white")
        figure.patch.set_alpha(1)
        figure.savefig(file, format="png", dpi=144, metadata={"Software": None})
        return file.getvalue()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index(b"<svg") :].replace(_INK.encode(), b"currentColor")
