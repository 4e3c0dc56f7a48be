"""The layers of a block, rounded a stage at a time, and those that are in none."""

import math

from torch import Tensor

from torchqat._library import Initialize, InputStatistics
from torchqat.layers.quant_layer import QuantLayer
from torchqat.ptq.block import Block
from torchqat.ptq.result import Calibration
from torchqat.ptq.rounding import round_layer
from torchqat.ptq.shared_inputs import Stage, gather_repeated


def round_stage(
    stage: Stage, statistics: InputStatistics, settings: Initialize, result: Calibration, weighs: dict[str, Tensor]
) -> None:
    """Round the layers of ``stage`` on what they are given, and take note of how well that went.

    Args:
        stage: The layers.
        statistics: Of their input.
        settings: The recipe's ``initialize``.
        result: Where errors and notes go.
        weighs: How much the model's output depends on that of each layer, by name; theirs are taken out.
    """
    for name, layer in stage.layers:
        _round(name, layer, statistics, settings, result, weighs)
    _note_tokens(stage.layers[0][0], statistics, settings, result)


def round_repeated(
    block: Block, hidden: list, settings: Initialize, result: Calibration, weighs: dict[str, Tensor]
) -> bool:
    """Round the layers that one call of ``block`` runs several times, on all that they are given there.

    They come after those that run once; returns whether there are any. Arguments as of ``round_stage``; ``hidden`` is
    what enters the block.
    """
    for layers in block.repeated:
        gathered = gather_repeated(block, [layer for _, layer in layers], hidden)
        for (name, layer), statistics in zip(layers, gathered, strict=True):
            _round(name, layer, statistics, settings, result, weighs)
            _note_tokens(name, statistics, settings, result)
    return bool(block.repeated)


def round_without_inputs(layers: list[tuple[str, QuantLayer]], settings: Initialize, result: Calibration) -> None:
    """Embeddings, whose entries are not multiplied, and convolutions in groups or transposed."""
    for name, layer in layers:
        if not layer.multiplies_rows:
            round_layer(layer, None, settings)
            if hasattr(layer, "groups") and settings.rounding in ("gptq", "clip"):
                result.rowless.append(name)


def round_unreached(layers: list[tuple[str, QuantLayer]], settings: Initialize, result: Calibration) -> None:
    """Layers that no batch reaches, which is said."""
    for name, layer in layers:
        result.warnings.append(f"{name} was never reached by the calibration data, so it was rounded to nearest.")
        round_layer(layer, None, settings)


def _round(
    name: str,
    layer: QuantLayer,
    statistics: InputStatistics,
    settings: Initialize,
    result: Calibration,
    weighs: dict[str, Tensor],
) -> None:
    loss, warning = round_layer(layer, statistics, settings, weighs.pop(name, None))
    layer.forget_weight()
    result.losses[name], result.tokens[name] = loss, statistics.tokens
    if warning:
        result.warnings.append(f"{name}: {warning}.")
    if not math.isfinite(loss):
        result.warnings.append(f"{name}: the error of its output is not finite.")


def _note_tokens(name: str, statistics: InputStatistics, settings: Initialize, result: Calibration) -> None:
    if statistics.ignored:
        result.warnings.append(f"{name}: {statistics.ignored} tokens were ignored, since they are not finite.")
    if settings.rounding == "gptq" and 0 < statistics.tokens < statistics.features:
        result.warnings.append(
            f"{name} has {statistics.features} features, but only {statistics.tokens} calibration tokens reached it; "
            "raise data.calibration.samples."
        )
