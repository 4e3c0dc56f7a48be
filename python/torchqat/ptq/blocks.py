"""A model cut into rows of blocks that each take what the block before them gives.

That a list of blocks is such a row is not believed but tried, on one batch of each form: a block begins a row of its own
where it is given something else (a decoder after its encoder, skip connections, a convolution between two blocks), or is
run several times. What enters a row is recorded in forwards of the whole model, the rows before it as they are by then.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchqat.model.blocks import NamedModules, block_lists
from torchqat.model.placement import Placed, weightless
from torchqat.ptq.block import Block, Forward, Stop, WholeModel, forwards, in_floating_point
from torchqat.ptq.calls import Call, alike, moved, tensors
from torchqat.ptq.trial import Reads, Seen, try_blocks


@dataclass
class Row:
    """Blocks that each take what the one before gives."""

    blocks: list[Block]

    @torch.no_grad()
    def open(self, model: nn.Module, batches: list[Any], forward: Forward, placed: Placed | None = None) -> list[Any]:
        """Note the calls of the blocks, which run as ``placed`` says from then on.

        Returns:
            What enters the first, per call, its hidden states as a rule: where ``placed`` keeps it.
        """
        for block in self.blocks if placed is not None else []:
            block.device = placed.device
        if isinstance(self.blocks[0], WholeModel):
            return list(batches)
        entering: list[Any] = []
        for batch in batches:
            with self._recorded(entering), suppress(Stop):
                forward(model, batch)
            if placed is not None:
                entering[:] = [moved(one, placed.kept) for one in entering]
        return entering

    @contextmanager
    def _recorded(self, entering: list[Any]) -> Iterator[None]:
        copies: dict[int, Any] = {}
        own = [block.module.forward for block in self.blocks]

        def recorder(place: int) -> Callable:
            block = self.blocks[place]

            def record(*args, **kwargs):
                call = Call.of(args, kwargs)
                if place == 0:
                    entering.append(None if block.hidden is None else call.at(block.hidden))
                block.keep(call, copies)
                if block.looped:
                    return own[place](*args, **kwargs)
                if place + 1 == len(self.blocks):
                    raise Stop
                return block.placeholder(call)

            return record if block.looped else weightless(record)

        with ExitStack() as stack:
            if self.blocks[0].looped:  # until it is calibrated, what it gives itself is in floating point
                stack.enter_context(in_floating_point(self.blocks[0].module))
            stack.enter_context(forwards(self.blocks, [recorder(place) for place in range(len(self.blocks))]))
            yield


@dataclass
class Rows:
    """All blocks of a model.

    Attributes:
        rows: In the order in which the model runs them; one of the whole model where it has no blocks.
        idle: Blocks that never ran.
        alone: Names of those that begin a row within their list, or are run several times.
        warnings: What that makes different, one sentence each.
    """

    rows: list[Row]
    idle: list[Block] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@torch.no_grad()
def cut_into_rows(
    model: nn.Module,
    batches: list[Any],
    forward: Forward,
    lists: list[NamedModules] | None = None,
    reads: Reads = lambda _block: nullcontext(),
) -> Rows:
    """Find the blocks of ``model`` and try them.

    Args:
        model: Prepared, or a float model with ``lists``.
        batches: One of each form is tried.
        forward: How to run one.
        lists: The lists of blocks; by default those with quantized layers.
        reads: Holds a block with its weights while it is run.
    """
    lists = block_lists(model) if lists is None else lists
    blocks = list({id(module): Block(name, module) for blocks in lists for name, module in blocks}.values())
    if not blocks:
        return Rows([Row([WholeModel(model, forward)])])
    tried = [(batch, try_blocks(model, blocks, batch, forward, reads)) for batch in _one_of_each_form(batches)]
    forgetful = next((blocks[p] for _, seen in tried for p, found in seen.items() if not found.again), None)
    if forgetful is not None:
        again = (
            f"{forgetful.name} does not give the same when it is run again, so the model was calibrated as one block."
        )
        return Rows([Row([WholeModel(model, forward)])], alone=[forgetful.name], warnings=[again])
    order = list(dict.fromkeys(place for _, seen in tried for place in seen))
    found = Rows([], [block for place, block in enumerate(blocks) if place not in order])
    begins = {id(module) for row in lists for _, module in row[:1]}
    start = 0
    while start < len(order):
        places = _row_from(order, start, [seen for _, seen in tried])
        row = _row([blocks[p] for p in places], [next(s[p] for _, s in tried if p in s) for p in places])
        held = _holds(row, places, model, tried, forward)
        places, row.blocks = places[:held], row.blocks[:held]
        if row.blocks[0].looped or (start and id(row.blocks[0].module) not in begins):
            found.alone.append(row.blocks[0].name)
        found.rows.append(row)
        start += held
    found.warnings += _said(found)
    return found


def _one_of_each_form(batches: list[Any]) -> list[Any]:
    """Batches that differ in which arguments they have are different forwards."""
    forms = {}
    for batch in batches:
        forms.setdefault(tuple((path, tensor.dim()) for path, tensor in tensors(batch)), batch)
    return list(forms.values())


def _row_from(order: list[int], start: int, trials: list[dict[int, Seen]]) -> list[int]:
    """The block at ``start`` and those after it that were given, in each trial, what the one before them gave."""
    places = [order[start]]
    if any(seen[places[0]].runs > 1 for seen in trials if places[0] in seen):
        return places
    for place in order[start + 1 :]:
        last = places[-1]
        found = [(seen.get(last), seen.get(place)) for seen in trials]
        links = [after.links for before, after in found if after is not None]
        if any((before is None) != (after is None) for before, after in found) or any(
            after.before != last or not after.follows or after.runs > 1 or after.links != links[0]
            for _, after in found
            if after is not None
        ):
            break
        places.append(place)
    return places


def _row(blocks: list[Block], seen: list[Seen]) -> Row:
    for place, (block, found) in enumerate(zip(blocks, seen, strict=True)):
        block.links = found.links if place else {} if found.hidden is None else {found.hidden: ()}
        block.hidden, block.looped = found.hidden, found.runs > 1
        block.given, block.passed = found.given, found.passed
    return Row(blocks)


def _holds(row: Row, places: list[int], model: nn.Module, tried: list[tuple[Any, dict[int, Seen]]], forward) -> int:
    """How many of the row's blocks are given the same besides, whatever the blocks before them gave."""
    held = len(row.blocks)
    for batch, seen in tried:
        if held == 1 or places[0] not in seen:
            continue
        with in_floating_point(model):
            row.open(model, [batch], forward)
        for index, block in enumerate(row.blocks):
            if index and index < held and not alike(block.calls[0].arguments, seen[places[index]].call.arguments, 0.0):
                held = index
            block.forget_calls()
    return held


def _said(found: Rows) -> list[str]:
    said = []
    if len(found.alone) == 1:
        said.append(
            f"{found.alone[0]} is not just given what the block before it gives, so it was calibrated by forwards of the "
            "whole model."
        )
    elif found.alone:
        said.append(
            f"{len(found.alone)} blocks are not just given what the block before them gives, so they were calibrated by "
            f"forwards of the whole model; the first is {found.alone[0]}."
        )
    return said


def idle_note(names: list[str]) -> str:
    """What is said of blocks that did not run."""
    if len(names) == 1:
        return f"{names[0]} did not run on the calibration data, so its weights were rounded to nearest."
    return (
        f"{len(names)} blocks did not run on the calibration data, so their weights were rounded to nearest; the first is "
        f"{names[0]}."
    )


def open_blocks(
    model: nn.Module, batches: list[Any], forward: Forward, placed: Placed | None = None
) -> tuple[list[Block], list[Any]]:
    """The blocks of a model that is one row of them, and what enters the first for each batch; else the model as one."""
    found = cut_into_rows(model, batches, forward)
    if len(found.rows) == 1 and not found.rows[0].blocks[0].looped:
        entering = found.rows[0].open(model, batches, forward, placed)
        if len(entering) == len(batches):
            return found.rows[0].blocks, entering
    return [WholeModel(model, forward)], list(batches)
