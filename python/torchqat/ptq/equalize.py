"""AWQ and SmoothQuant on one block: search the scales of each stage, and fold them where they can go."""

import torch

from torchqat._library import FLOAT, Initialize, InputStatistics, awq_scale, smoothing_scale
from torchqat.layers.quant_layer import QuantLayer
from torchqat.ptq.block import Block, in_floating_point
from torchqat.ptq.folding import Fold, apply_fold, find_fold
from torchqat.ptq.shared_inputs import Stage, gather


@torch.no_grad()
def equalize(block: Block, stages: list[Stage], hidden: list, transform: str, settings: Initialize) -> list[str]:
    """Make the weights (``awq``) or the inputs (``smoothquant``) of ``block`` easier to round.

    Args:
        block: Its weights still in floating point.
        stages: All its stages.
        hidden: What enters it.
        transform: ``awq`` or ``smoothquant``.
        settings: The recipe's ``initialize``.

    Returns:
        The names of layers whose scales have nowhere to go.
    """
    with in_floating_point(block.module):
        statistics = gather(block, stages, hidden)
    left = []
    for stage, seen in zip(stages, statistics, strict=True):
        wanted = [(name, layer) for name, layer in stage.layers if _concerns(layer, transform)]
        if not wanted or seen.tokens == 0:
            continue
        fold = find_fold(block, stage)
        held = fold is not None and _fold(block, hidden, fold, seen, transform, settings)
        if not held and not (transform == "smoothquant" and fold is not None and fold.norm is None):
            left += [name for name, _ in wanted]
    return left


def _concerns(layer, transform: str) -> bool:
    return (layer.input_spec if transform == "smoothquant" else layer.weight_spec) is not None


def _shares(layers: list[QuantLayer]) -> list[int]:
    """For each layer a number that is that of all under one outer scale; -1 for one that shares none."""
    groups = [layer.shared_outer_scale for layer in layers]
    return [-1 if group is None else groups.index(group) for group in groups]


def _fold(block: Block, hidden: list, fold: Fold, seen: InputStatistics, transform: str, settings: Initialize) -> bool:
    if transform == "smoothquant":
        if fold.norm is None:
            return False  # the paper smooths what norms produce, and leaves the rest to per-token scales
        scale = smoothing_scale(
            [layer.weight for layer in fold.stage.consumers], seen.max_magnitude, settings.smoothing
        )
    else:
        rounded = [
            layer for _, layer in fold.stage.layers if layer.weight_spec is not None and layer.weight_bits != FLOAT
        ]
        found = awq_scale(
            [(layer.master, layer.weight_spec, layer.weight_bits) for layer in rounded], seen, shares=_shares(rounded)
        )
        if found.loss >= found.plain:
            return True  # scales of 1 are the best there are
        scale = found.scale
    return apply_fold(block, hidden, fold, fold.shared(scale).to(fold.stage.layers[0][1].weight.device))
