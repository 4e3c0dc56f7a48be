"""What the calls of a block make of calibration tokens: in the quantized model, and in the float one for its drift."""

import torch
from torch import nn

from torchqat._library import InputStatistics
from torchqat.ptq.block import Block
from torchqat.ptq.calls import moved
from torchqat.ptq.resumption import Needs, Resumption, Room
from torchqat.ptq.shared_inputs import Stage, collect, twins_of


class Streams:
    """A block, run as far as its stages are rounded; each forward goes on from where it stopped.

    Args:
        block: The block, its transforms folded in.
        stages: Its stages.
        hidden: What enters it, per call; in the end, what it gives.
        kept_at: Where that lies, and what is kept meanwhile.
        original: The float block, where the drift is wanted.
        original_hidden: What enters that; in the end, what it gives, where ``keeps_on`` is said.
        keeps_on: Another block follows, and nothing comes between that the float block is needed for.
    """

    def __init__(
        self,
        block: Block,
        stages: list[Stage],
        hidden: list,
        kept_at: torch.device,
        original: nn.Module | None = None,
        original_hidden: list | None = None,
        keeps_on: bool = False,
    ):
        self._stages, self._hidden, self._original_hidden = stages, hidden, original_hidden
        self._kept_at, self._keeps_on, self._original = kept_at, keeps_on, None
        layers = [layer for stage in stages for _, layer in stage.layers]
        needs, room = Needs.of(block, stages, hidden[0]) if hidden else None, Room(hidden, original_hidden or [])
        self._quantized = Resumption(block, hidden, layers, needs, room, kept_at)
        if original is not None:
            self._twins = twins_of(block.module, original, layers)
            self._original = Resumption(block, original_hidden, self._twins, needs, room, kept_at, original)
        self._places = [sum(len(one.layers) for one in stages[:stage]) for stage in range(len(stages))]
        self._layers = layers
        self.float_went_on = False

    def gather(self, part: range) -> list[InputStatistics]:
        """Statistics of the inputs of the stages ``part``, those before being rounded."""
        stages = self._stages[part.start : part.stop]
        firsts = [self._places[stage] for stage in part]
        to_end = self._keeps_on and part.stop == len(self._stages)

        def given(index: int) -> list:
            return self._quantized.inputs(index, [self._layers[place] for place in firsts], part, False)[0]

        def wanted(index: int) -> list:
            found, output = self._original.inputs(index, [self._twins[place] for place in firsts], part, to_end)
            if to_end:
                self._original_hidden[index] = moved(output, self._kept_at)
            return found

        found = collect(stages, len(self._hidden), given, wanted if self._original is not None else None)
        self.float_went_on |= to_end and self._original is not None
        return found

    def forget(self) -> None:
        """Something else than a stage has changed."""
        self._quantized.forget()

    def go_on(self) -> None:
        """Put what the block gives in the place of what enters it."""
        for index in range(len(self._hidden)):
            self._hidden[index] = moved(self._quantized.output(index), self._kept_at)
