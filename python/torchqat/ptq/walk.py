"""Block after block: transform, round, and hand the tokens on."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchqat._library import FLOAT, Initialize
from torchqat.errors import UserError
from torchqat.layers.kept_weight import keeping_weights
from torchqat.layers.kv_cache import caches
from torchqat.layers.prepared import quant_layers
from torchqat.model.blocks import NamedModules
from torchqat.model.out_of_memory import is_out_of_memory
from torchqat.model.placement import Placed
from torchqat.progress import counted
from torchqat.ptq.block import Block, Forward
from torchqat.ptq.block_training import train_block
from torchqat.ptq.blocks import Row, cut_into_rows, idle_note
from torchqat.ptq.calls import moved
from torchqat.ptq.equalize import equalize
from torchqat.ptq.experts import round_experts
from torchqat.ptq.output_gradients import NARROWEST, output_hessians
from torchqat.ptq.ranges import calibrate_ranges
from torchqat.ptq.rest import round_rest
from torchqat.ptq.result import Calibration
from torchqat.ptq.rotation import rotate
from torchqat.ptq.rounding import round_layer
from torchqat.ptq.shared_inputs import find_stages
from torchqat.ptq.shared_layers import note_shared
from torchqat.ptq.stages import round_repeated, round_stage, round_unreached, round_without_inputs
from torchqat.ptq.streams import Streams


class AtWork(Protocol):
    """Holds the blocks of a model that is not in memory while they are needed."""

    lists: list[NamedModules]

    def reads(self, block: Block) -> AbstractContextManager:
        """Its float weights there, for a while."""

    def __call__(self, block: Block) -> AbstractContextManager:
        """Its weights there and its layers replaced, while it is calibrated and run."""


@torch.no_grad()
def initialize(
    model: nn.Module,
    batches: list[Any],
    forward: Forward,
    settings: Initialize,
    placed: Placed,
    at_work: AtWork | None = None,
) -> Calibration:
    """Transform and round the weights of a prepared model as ``settings`` say, in place.

    One block is at work at a time, on what the quantized blocks before it give; what the float ones in its row give is
    kept beside it where the drift between the two is made good, or blocks are trained. The scales of inputs and caches
    that are fixed beforehand follow once a block's weights are rounded.

    Args:
        model: Prepared; or, with ``at_work``, one that it prepares block by block.
        batches: What ``forward`` takes.
        forward: How to run one batch.
        settings: The recipe's ``initialize``.
        placed: Where blocks are calibrated, and what is kept between two of them lies.
        at_work: Holds the blocks of a model that is not in memory.

    Raises:
        UserError: A model that is not in memory is no single row of blocks, or no gradient goes back through one
            that is to be rounded by them.
    """
    result = Calibration()
    for _, layer in quant_layers(model):
        layer.unsettle_outer_scales()
    if "hadamard" in settings.transforms:
        rotate(model, batches[0], forward, placed, settings.rotation_size)
    weighs: dict[str, Tensor] = {}
    if at_work is None:
        if settings.weighs_outputs:
            weighs = _weighed(model, batches, forward, settings, placed, result)
        found = cut_into_rows(model, batches, forward)
    else:
        found = cut_into_rows(model, batches, forward, at_work.lists, at_work.reads)
        if found.alone or len(found.rows) > 1:
            other = (*found.alone, *(row.blocks[0].name for row in found.rows[1:]))[0]
            raise UserError(
                "To be streamed, each block of a model must be given what the block before it gives and nothing else of "
                f"theirs, but {other} is not; run the recipe without streaming."
            )
    result.warnings += found.warnings
    blocks = [block for row in found.rows for block in row.blocks] + found.idle
    held = note_shared(model, blocks)
    if held and at_work is not None:
        raise UserError(
            f"To be streamed, each weight of a model must be in one block, but {held[0]} is in several; run the recipe "
            "without streaming."
        )
    result.shared = [name for name, _ in quant_layers(model) if name in held]
    if settings.rounding == "gptq":
        result.objective = "model" if weighs else "layer"
    begun = _Work(placed, at_work, weighs)
    for row in found.rows:
        _calibrate_row(row, row.open(model, batches, forward, placed), settings, result, begun)
    _round_idle(found.idle, settings, result, begun)
    if at_work is None:
        round_rest(model, blocks, batches, forward, settings, result, weighs)
    result.note_what_was_left(settings.block_training.steps > 0)
    return result


def _weighed(
    model: nn.Module, batches: list, forward: Forward, settings: Initialize, placed: Placed, result: Calibration
) -> dict[str, Tensor]:
    """``output_hessians``, or none, which is said, for a model through which no gradient goes back."""
    try:
        return output_hessians(model, batches, forward, placed, 0 if settings.objective == "model" else NARROWEST)
    except Exception as error:  # whatever a model's code does not do backwards, or a second time
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        if settings.objective == "model":
            raise UserError(
                "initialize.objective must be auto or layer for a model through which no gradient goes back, but is model: "
                f"{why}."
            ) from error
        result.warnings.append(
            f"No gradient goes back through the model, so GPTQ rounds each layer for its own output: {why}."
        )
        return {}


class _Work:
    """A block that is calibrated: in memory, and on the device.

    Attributes:
        placed: Where.
        weighs: How much the model's output depends on that of each layer, by name, until the layer is rounded.
    """

    def __init__(self, placed: Placed, at_work: AtWork | None, weighs: dict[str, Tensor]):
        self.placed, self._at_work, self.weighs = placed, at_work, weighs

    @contextmanager
    def __call__(self, block: Block) -> Iterator[None]:
        with nullcontext() if self._at_work is None else self._at_work(block), self.placed.hold(block.module):
            yield

    def keep(self, given: Any) -> Any:
        """What a block gave, until the next one takes it."""
        return moved(given, self.placed.kept)


def _calibrate_row(row: Row, hidden: list, settings: Initialize, result: Calibration, begun: _Work) -> None:
    need_original = _uses_drift(settings) or settings.block_training.steps > 0
    original_hidden = list(hidden) if need_original else None
    for block in counted(row.blocks, "Calibrating blocks"):
        last = block is row.blocks[-1]
        with begun(block), keeping_weights(layer for _, layer in block.layers()):
            original = _float_copy(block) if need_original else None
            original, streams = _quantize(block, hidden, original, original_hidden, settings, result, begun, last)
            run = partial(_run_all, block, hidden)
            if calibrate_ranges(block.module, block.name, run, result, block.shared):
                streams.forget()
            if not last:
                streams.go_on()
                if need_original and not streams.float_went_on:
                    for index, tokens in enumerate(original_hidden):
                        original_hidden[index] = begun.keep(block.run(index, tokens, original))
            original = streams = None  # they are not held while the next block comes
        block.forget_calls()


def _round_idle(idle: list[Block], settings: Initialize, result: Calibration, begun: _Work) -> None:
    """Blocks that the model does not run, such as those that predict further tokens in training alone."""
    names = []
    for block in idle:
        with begun(block):
            layers = block.own_layers()
            for _, layer in layers:
                round_layer(layer, None, settings)
        names += [block.name] if layers else []
    if names:
        result.warnings.append(idle_note(names))


def _run_all(block: Block, hidden: list) -> None:
    for index, tokens in enumerate(hidden):
        block.run(index, tokens)


def _uses_drift(settings: Initialize) -> bool:
    """Only GPTQ makes the drift good; for other methods the float model need not be run beside."""
    return settings.rounding == "gptq" and settings.correction > 0.0


def _float_copy(block: Block) -> nn.Module:
    original = copy.deepcopy(block.module)
    for _, layer in quant_layers(original):
        layer.set_bits(FLOAT, FLOAT, derive=False)
    for _, cache in caches(original):
        cache.enabled = False
    return original


def _quantize(
    block: Block,
    hidden: list,
    original: nn.Module | None,
    original_hidden: list | None,
    settings: Initialize,
    result: Calibration,
    begun: _Work,
    last: bool,
) -> tuple[nn.Module | None, Streams]:
    """Returns the float block beside it, where there is one, with the same scales folded into it; and how far both ran."""
    round_without_inputs(block.own_layers(), settings, result)
    stages, unreached = find_stages(block, hidden)
    for transform in settings.transforms:
        if transform == "hadamard":
            continue
        result.unfolded.setdefault(transform, []).extend(equalize(block, stages, hidden, transform, settings))
        if original is not None:  # else the fold itself would be taken for drift
            original = _float_copy(block)
    trains = settings.block_training.steps > 0
    drift = (original, original_hidden) if _uses_drift(settings) else (None, None)
    streams = Streams(block, stages, hidden, begun.placed.kept, *drift, keeps_on=not (last or trains))
    # Together: the statistics of all stages in one go, each seeing the others in floating point.
    whole = range(len(stages))
    parts = [range(stage, stage + 1) for stage in whole] if settings.sequential else [whole] if stages else []
    for part in counted(parts, f"Rounding {block.name or 'the model'}"):
        for place, statistics in zip(part, streams.gather(part), strict=True):
            round_stage(stages[place], statistics, settings, result, begun.weighs)
    if round_experts(block, hidden, settings, result):
        streams.forget()
    if round_repeated(block, hidden, settings, result, begun.weighs):
        streams.forget()
    layers = dict(block.layers())
    round_unreached([(name, layers[name]) for name in unreached], settings, result)
    if trains:
        with torch.enable_grad():
            result.warnings += train_block(block, hidden, original, original_hidden, settings.block_training)
        streams.forget()
    return original, streams
