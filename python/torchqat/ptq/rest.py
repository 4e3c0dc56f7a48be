"""Layers that no block could be rounded with: outside of them, or in several."""

from typing import Any

from torch import Tensor, nn

from torchqat._library import Initialize
from torchqat.layers.quant_layer import QuantLayer
from torchqat.progress import counted
from torchqat.ptq.block import Block, Forward, WholeModel
from torchqat.ptq.experts import round_experts
from torchqat.ptq.result import Calibration
from torchqat.ptq.shared_inputs import find_stages, gather
from torchqat.ptq.stages import round_repeated, round_stage, round_unreached, round_without_inputs


class Rest(WholeModel):
    """What a model has beside ``blocks``, such as a head that a rule names, and what several of them hold."""

    def __init__(self, model: nn.Module, blocks: list[Block], forward: Forward):
        super().__init__(model, forward)
        self._inside = {id(layer) for block in blocks for _, layer in block.own_layers()}

    def layers(self) -> list[tuple[str, QuantLayer]]:
        return [(name, layer) for name, layer in super().layers() if id(layer) not in self._inside]


def round_rest(
    model: nn.Module,
    blocks: list[Block],
    batches: list[Any],
    forward: Forward,
    settings: Initialize,
    result: Calibration,
    weighs: dict[str, Tensor],
) -> None:
    """Round them as one more block, on what the finished blocks give; arguments as of ``initialize`` and ``round_stage``."""
    rest = Rest(model, blocks, forward)
    if not rest.layers():
        return
    for transform in settings.transforms:
        if transform != "hadamard":
            result.unfolded.setdefault(transform, []).extend(result.shared)
    round_without_inputs(rest.layers(), settings, result)
    stages, unreached = find_stages(rest, batches)
    for stage in counted(stages, "Rounding layers outside the blocks"):
        round_stage(stage, gather(rest, [stage], batches)[0], settings, result, weighs)
    round_repeated(rest, batches, settings, result, weighs)
    round_experts(rest, batches, settings, result)
    layers = dict(rest.layers())
    round_unreached([(name, layers[name]) for name in unreached], settings, result)
