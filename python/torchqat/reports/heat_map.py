"""The picture of the layers: kinds of layers down, blocks across."""

import math
import re
from collections import Counter

from torchqat.reports.drawing import figure, rendered, shown
from torchqat.reports.report import Report

# Numbers under the picture, and names beside it, that stand clear of each other.
_MOST_BLOCKS, _MOST_KINDS = 16, 40
# Inches of a row, and of the whole.
_ROW, _HIGHEST = 0.3, 12.0


def layers_picture(report: Report, form: str) -> bytes | None:
    """Each layer, kinds of layers down and blocks across; the dark ones lose most.

    KL with the layer alone quantized, where that was measured; else the signal to quantization noise of its weight.
    """
    found = layer_values(report)
    if found is None:
        return None
    values, title, label = found
    return _drawn(values, "Blues" if report.sensitivity else "Blues_r", title, label, form)


def layer_values(report: Report) -> tuple[dict[str, float], str, str] | None:
    """What is drawn of each layer, of which model, and what it is; ``None`` where nothing was measured."""
    if report.sensitivity:
        width = next(iter(next(iter(report.sensitivity.values()))))  # the least
        values = {n: math.log10(max(kl[width], 1e-10)) for n, kl in report.sensitivity.items() if width in kl}
        how = f"at {width} bits" if width.isdigit() else f"in {width}"
        return values, f"each layer alone {how}", "KL to full precision, powers of ten"
    variant = shown(report, "sqnr")
    return None if variant is None else (variant.sqnr, variant.method, "signal to noise, dB")


def layer_grid(values: dict[str, float]) -> dict[tuple[str, int], float]:
    """Values by kind of layer and number of block, from names such as ``model.layers.3.mlp.up_proj``.

    Where two rows of blocks have layers of the same kind, as those of an encoder and a decoder, the kinds say which.
    """
    found = {name: re.search(r"^(.*?)\.(\d+)\.(.+)$", name) for name in values}
    places = Counter((match[3], match[2]) for match in found.values() if match)
    twice = {kind for (kind, _), count in places.items() if count > 1}
    grid = {}
    for name, value in values.items():
        match = found[name]
        rows = f"{match[1]}.*." if match and match[3] in twice else ""
        grid[(rows + match[3], int(match[2])) if match else (name, 0)] = value
    return grid


def stride(count: int, most: int) -> int:
    """Which of ``count`` labels are written for there to be no more than ``most``: every first, second, fifth, tenth ..."""
    steps = (scale * step for scale in (1, 10, 100, 1000) for step in (1, 2, 5))
    return next(step for step in steps if -(-count // step) <= most)


def _drawn(values: dict[str, float], colours: str, title: str, label: str, form: str) -> bytes:
    grid = layer_grid(values)
    kinds, blocks = sorted({kind for kind, _ in grid}), sorted({block for _, block in grid})
    cells = [[grid.get((kind, block), float("nan")) for block in blocks] for kind in kinds]
    height = min(_HIGHEST, 1.2 + _ROW * len(kinds))
    with figure(height=height) as (drawn, axes):
        image = axes.imshow(cells, cmap=colours, aspect="auto", interpolation="nearest")
        axes.grid(False)
        across, down = stride(len(blocks), _MOST_BLOCKS), stride(len(kinds), _MOST_KINDS)
        axes.set_xticks(range(0, len(blocks), across), [str(block) for block in blocks[::across]])
        axes.set_yticks(range(0, len(kinds), down), kinds[::down])
        axes.set_xlabel("block")
        axes.set_title(title, fontsize=10)
        drawn.colorbar(image, ax=axes, label=label)
        return rendered(drawn, form)
