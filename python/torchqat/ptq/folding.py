"""Scales of channels, moved out of a layer's input into what produces it, so that nothing is left to do at run time.

A linear layer's columns are multiplied by ``s`` and its input divided by it. The division goes into the norm before it, or
into the rows of the linear layer before it where all between them is linear in each channel. Whether a fold leaves the
block's results as they were is not read off its architecture but tried, on a batch that reaches the layer: a fold that
changes them is taken back.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.model.blocks import hooks
from torchqat.ptq.block import Block, in_floating_point
from torchqat.ptq.calls import alike, main_tensor
from torchqat.ptq.shared_inputs import Stage

# Producer and consumer, by the last part of their names, between which each channel goes its own linear way.
_LINEAR_PAIRS = (("v_proj", "o_proj"), ("up_proj", "down_proj"))
# A fold that leaves a block's output within this share of its largest element is kept. Foldings done in bfloat16 move it
# by a few 1e-3; a wrong one by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_HALF_TOLERANCE = 3e-2


@dataclass
class Fold:
    """Where the division can go.

    Attributes:
        stage: The layers whose columns are multiplied.
        norm: The norm that produces their input, or
        linear: the linear layer whose rows do.
        repeats: How often each row of ``linear`` appears among the columns (query heads per key head).
        head_size: Columns that belong to one head; 0 without heads.
    """

    stage: Stage
    norm: nn.Module | None = None
    linear: nn.Linear | None = None
    repeats: int = 1
    head_size: int = 0

    def shared(self, scale: Tensor) -> Tensor:
        """``scale`` with one value for all columns that come from one row: their geometric mean."""
        if self.repeats == 1:
            return scale
        heads = scale.log().view(-1, self.repeats, self.head_size).mean(1, keepdim=True)
        return heads.expand(-1, self.repeats, -1).reshape(-1).exp()


def find_fold(block: Block, stage: Stage) -> Fold | None:
    """Where the scales of ``stage`` could go, or ``None``: into nothing that is in another place of the model as well, nor
    into a norm whose result experts may take that no trial would reach."""
    if not all(isinstance(layer, nn.Linear) for _, layer in stage.layers):
        return None
    if any(id(module) in block.shared for module in (stage.producer, *stage.consumers)):
        return None
    features = stage.layers[0][1].in_features
    weight = getattr(stage.producer, "weight", None)
    if weight is not None and weight.dim() == 1 and weight.numel() == features:
        return None if stage.misses_consumers else Fold(stage, norm=stage.producer)
    if len(stage.layers) != 1:
        return None
    modules = dict(block.module.named_modules())
    inside = stage.layers[0][0].removeprefix(f"{block.name}.")
    parent, _, leaf = inside.rpartition(".")
    for producer, consumer in _LINEAR_PAIRS:
        source = modules.get(f"{parent}.{producer}" if parent else producer)
        if leaf != consumer or not isinstance(source, nn.Linear) or features % source.out_features:
            continue
        if id(source) in block.shared:
            continue
        head_size = getattr(modules.get(parent), "head_dim", 0) or 0
        repeats = features // source.out_features
        if repeats == 1 or (head_size and source.out_features % head_size == 0):
            return Fold(stage, linear=source, repeats=repeats, head_size=head_size)
    return None


@torch.no_grad()
def apply_fold(block: Block, hidden: list, fold: Fold, scale: Tensor) -> bool:
    """Fold ``scale`` (float32 ``[in]``, positive) and say whether it held; if not, everything is as before."""
    touched = [fold.norm or fold.linear, *fold.stage.consumers]
    parameters = [p for module in touched for p in (module.weight, getattr(module, "bias", None)) if p is not None]
    saved = [(parameter, parameter.detach().clone()) for parameter in parameters]
    with in_floating_point(block.module):
        index, expected = _run_that_reaches(fold.stage.layers[0][1], block, hidden)
        for offset in (0.0, 1.0) if fold.norm is not None else (0.0,):
            _multiply(fold, scale, offset)
            for _, layer in block.layers():
                layer.forget_weight()
            if alike(block.run(index, hidden[index]), expected, _tolerance(expected)):
                return True
            for parameter, before in saved:
                parameter.copy_(before)
    return False


def _run_that_reaches(layer: nn.Module, block: Block, hidden: list) -> tuple[int, Any]:
    """The first batch in which ``block`` calls ``layer``, which an expert's may not be by any, and what it gives."""
    called: list[bool] = []
    with hooks([layer.register_forward_pre_hook(lambda *_: called.append(True))]):
        for index, entering in enumerate(hidden):
            given = block.run(index, entering)
            if called:
                break
    return index, given


def _multiply(fold: Fold, scale: Tensor, offset: float) -> None:
    """``offset``: what a norm adds to its weight before it multiplies (1 in Gemma)."""
    for layer in fold.stage.consumers:
        layer.weight.copy_(layer.weight.float() * scale)
    if fold.norm is not None:
        fold.norm.weight.copy_((fold.norm.weight.float() + offset) / scale - offset)
        if getattr(fold.norm, "bias", None) is not None:
            fold.norm.bias.copy_(fold.norm.bias.float() / scale)
        return
    rows = scale if fold.repeats == 1 else scale.view(-1, fold.repeats, fold.head_size)[:, 0].reshape(-1)
    fold.linear.weight.copy_(fold.linear.weight.float() / rows.unsqueeze(1))
    if fold.linear.bias is not None:
        fold.linear.bias.copy_(fold.linear.bias.float() / rows)


def _tolerance(given: Any) -> float:
    main = main_tensor(given)
    return _HALF_TOLERANCE if main is None else _TOLERANCE.get(main.dtype, _HALF_TOLERANCE)
