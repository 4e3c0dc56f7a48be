"""What a model's blocks really do, seen in one float forward: which run, in which order, and what each is given."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.model.blocks import hooks
from torchqat.model.towers import output_head
from torchqat.ptq.block import Block, Forward, Stop, forwards, in_floating_point, same_form, without_elements
from torchqat.ptq.calls import Call, Path, alike, main_tensor, tensors

# A block that is run again on the same gives the same to the last bit on a CPU; on a GPU sums may change their order.
_TOLERANCE = 1e-3

Reads = Callable[[Block], AbstractContextManager]


@dataclass
class Seen:
    """One block in one forward.

    Attributes:
        before: The block that ran before it; ``None`` for the first.
        links: Which of its arguments are what that gave, and where.
        call: Its call without them.
        given: What it gave, without elements.
        passed: Which of that have the form of an argument, and of which.
        hidden: Which argument its hidden states are.
        runs: How often it ran.
        again: Whether it gave the same when it was run again.
    """

    before: int | None
    links: dict[Path, Path]
    call: Call
    given: Any = None
    passed: dict[Path, Path] = field(default_factory=dict)
    hidden: Path | None = None
    runs: int = 1
    again: bool = True

    @property
    def follows(self) -> bool:
        """Whether its hidden states are those that the block before it gave."""
        return self.hidden in self.links


def try_blocks(
    model: nn.Module, blocks: list[Block], batch: Any, forward: Forward, reads: Reads = lambda _block: nullcontext()
) -> dict[int, Seen]:
    """Run ``model`` on ``batch`` in floating point, as far as its output head, and watch ``blocks``.

    Returns:
        What was seen of each block that ran, by its place in ``blocks``, in the order in which they ran first.
    """
    seen = _tried(model, blocks, batch, forward, reads, _stops(model))
    # Some architectures call the head an embedding that they begin with, too.
    return seen if len(seen) == len(blocks) else _tried(model, blocks, batch, forward, reads, [])


def _tried(model, blocks: list[Block], batch: Any, forward: Forward, reads: Reads, stops: list) -> dict[int, Seen]:
    trial = _Trial(blocks, reads)
    with ExitStack() as stack:
        stack.enter_context(in_floating_point(model))
        stack.enter_context(forwards(blocks, [trial.watched(place) for place in range(len(blocks))]))
        stack.enter_context(hooks(stops))
        stack.enter_context(suppress(Stop))
        forward(model, batch)
    return trial.seen


def _stops(model: nn.Module) -> list:
    """Nothing that matters here comes after the output head, the largest of all layers."""

    def stop(_module: nn.Module, _args: tuple) -> None:
        raise Stop

    head = output_head(model)
    return [] if head is None else [head.register_forward_pre_hook(stop, prepend=True)]


class _Trial:
    def __init__(self, blocks: list[Block], reads: Reads):
        self.blocks, self.reads = blocks, reads
        self.seen: dict[int, Seen] = {}
        self.last: int | None = None
        self.output: Any = None  # of the last

    def watched(self, place: int) -> Callable:
        block = self.blocks[place]
        own = block.module.forward

        def watch(*args, **kwargs):
            call = Call.of(args, kwargs)
            links = _links(call, self.output)
            with self.reads(block):
                output = own(*args, **kwargs)
                again = alike(call.run(own), output, _TOLERANCE)
            if place in self.seen:
                self.seen[place].runs += 1
                self.seen[place].again &= again
            else:
                found = Seen(self.last, links, call.with_values(dict.fromkeys(links)), again=again)
                found.given, found.hidden = without_elements(output), _hidden(call, output)
                found.passed = _passed(call, output, found.hidden)
                self.seen[place] = found
            self.last, self.output = place, output
            return output

        return watch


def _links(call: Call, output: Any) -> dict[Path, Path]:
    """Arguments that are what the block before gave, by place: the same tensors; or, of one that was copied, equal ones."""
    given = list(tensors(output))
    links = {}
    for place, tensor in call.tensors():
        found = next((path for path, other in given if other is tensor), None)
        if found is not None:
            links[place] = found
    main = main_tensor(output)
    if main is not None and not any(path == _path_of(main, given) for path in links.values()):
        for place, tensor in call.tensors():
            if place not in links and same_form(tensor, main) and torch.equal(tensor, main):
                links[place] = _path_of(main, given)
                break
    return links


def _path_of(tensor: Tensor, given: list[tuple[Path, Tensor]]) -> Path:
    return next(path for path, other in given if other is tensor)


def _hidden(call: Call, output: Any) -> Path | None:
    """Which argument the hidden states are: the first in the form of what the block gives, or else of floating point."""
    main = main_tensor(output)
    floats = [(place, tensor) for place, tensor in call.tensors() if tensor.is_floating_point()]
    alike_main = [place for place, tensor in floats if main is not None and same_form(tensor, main)]
    return next(iter([*alike_main, *(place for place, _ in floats)]), None)


def _passed(call: Call, output: Any, hidden: Path | None) -> dict[Path, Path]:
    """For each tensor that a block gives an argument of the same form, the hidden states before others."""
    arguments = sorted(call.tensors(), key=lambda found: found[0] != hidden)
    passed = {}
    for path, tensor in tensors(output):
        place = next((place for place, argument in arguments if same_form(argument, tensor)), None)
        if place is not None:
            passed[path] = place
    return passed
