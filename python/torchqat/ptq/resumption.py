"""The forwards of a block that stop at one stage of its layers after the other, and go on from where they stopped.

A stage is rounded on what all calibration tokens give it, so the forward of each call is stopped as often as there are
stages. Of what it computed, what comes later needs is kept: results of layers, or inputs of those that are rounded next.
When it goes on, the layers before are skipped (``skipped.py``), and so is all that was made of them. What needs which is not
read from the code of a block but tried; where a forward cannot go without, it begins anew, and gives the same.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.model.blocks import hooks
from torchqat.ptq.block import Block, Stop, WholeModel, forwards_of
from torchqat.ptq.calls import Path, moved, replaced, tensors
from torchqat.ptq.shared_inputs import Stage
from torchqat.ptq.skipped import NotSkippable, Skipped, form_of, is_known, is_whole

# What is kept inside a block takes at most this many times the memory of what is kept between blocks.
_SHARE = 2


class Room:
    """Memory for what is kept inside a block that the calls of each of ``entering`` enter."""

    def __init__(self, *entering: list[Any]):
        self.left = _SHARE * sum(t.nbytes for calls in entering for one in calls for _, t in tensors(one))

    def take(self, tensor: Tensor) -> bool:
        fits = tensor.nbytes <= self.left
        self.left -= tensor.nbytes if fits else 0
        return fits

    def give_back(self, kept: Iterable[Tensor]) -> None:
        self.left += sum(tensor.nbytes for tensor in kept)


@dataclass
class Needs:
    """Which layers' results a block takes for what, layers being numbered in the order of their stages.

    Attributes:
        stage_of: Of each layer.
        input: What the input of each stage is made of.
        output: What the block gives is made of.
        whole: Modules that give the result of a layer as it is, by that: the name of the outermost, what it gives, and where
            in that the result is.
        kept_results: Layers whose results are needed again in later forwards than the one that they run in first.
        kept_inputs: Stages whose inputs are made of other results than those.
    """

    stage_of: list[int]
    input: list[frozenset[int]]
    output: frozenset[int]
    whole: dict[int, tuple[str, Any, Path]]

    def __post_init__(self):
        targets = [*enumerate(self.input), (len(self.input), self.output)]
        self.kept_results = {layer for at, needed in targets for layer in needed if at > self.stage_of[layer] + 1}
        self.kept_inputs = {stage for stage, needed in enumerate(self.input) if not needed <= self.kept_results}

    @classmethod
    def of(cls, block: Block, stages: list[Stage], entering: Any) -> "Needs | None":
        """Tried on the first call, without its layers; ``None`` where that cannot be told."""
        if block.looped or isinstance(block, WholeModel) or not all(len(s.forms) == len(s.layers) for s in stages):
            return None
        layers = [layer for stage in stages for _, layer in stage.layers]
        forms = [form for stage in stages for form in stage.forms]
        needed: dict[int, frozenset[int]] = {}
        results: dict[int, Skipped] = {}
        whole: dict[int, tuple[str, Any, Path]] = {}

        def cut(place: int):
            def forward(x: Tensor, *_args, **_kwargs) -> Tensor:
                needed[place] = x.sources if isinstance(x, Skipped) else frozenset()
                results[place] = Skipped.of(forms[place], [place], x.device)
                return results[place]

            return forward

        def watch(name: str):
            def hook(_module: nn.Module, _inputs: tuple, output: Any) -> None:
                found = list(tensors(output))
                place = next((p for p, result in results.items() if len(found) == 1 and found[0][1] is result), None)
                if place is not None and is_known(output):
                    whole[place] = name, output, found[0][0]

            return hook

        watched = [(name, module) for name, module in block.module.named_modules() if name and module not in layers]
        try:
            with (
                forwards_of(layers, [cut(place) for place in range(len(layers))]),
                hooks([module.register_forward_hook(watch(name)) for name, module in watched]),
            ):
                given = block.run(0, entering)
        except Exception:  # the code of a block may do anything with what it computes
            return None
        stage_of = [place for place, stage in enumerate(stages) for _ in stage.layers]
        firsts = [stage_of.index(stage) for stage in range(len(stages))]
        if not is_known(given) or any(place not in needed for place in firsts):
            return None
        ends = [t.sources for _, t in tensors(given) if isinstance(t, Skipped)]
        return cls(stage_of, [needed[place] for place in firsts], frozenset().union(*ends), whole)


@dataclass
class _Kept:
    """Of one call: results of layers with their versions, and inputs, of stages; and the forms of all results."""

    results: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    forms: dict[int, Tensor] = field(default_factory=dict)


class Resumption:
    """The calls of one block, as one of its models runs it.

    Args:
        block: The block.
        entering: What enters it, per call; what is put in the place of an element is what enters it from then on.
        layers: Of its stages, stage after stage; of the float copy, where that is run.
        needs: As tried; without, every forward begins anew.
        room: For what is kept.
        kept_at: Where that lies.
        copy: The float copy that is run in place of the block: its layers are never rounded.
    """

    def __init__(
        self,
        block: Block,
        entering: list,
        layers: list[nn.Module],
        needs: Needs | None,
        room: Room,
        kept_at: torch.device,
        copy: nn.Module | None = None,
    ):
        self._block, self._entering, self._layers, self._copy = block, entering, layers, copy
        self._needs, self._room, self._kept_at = needs, room, kept_at
        self._calls = [_Kept() for _ in entering]

    def inputs(self, index: int, firsts: list[nn.Module], part: range, to_end: bool) -> tuple[list[Tensor | None], Any]:
        """Run call ``index`` until a layer of each of the stages ``part`` has its input.

        Args:
            index: Of the call.
            firsts: The first layer of each of these stages.
            part: The next stages, rounded together.
            to_end: Also run what follows.

        Returns:
            Those inputs; and what the block gives, with ``to_end``.
        """
        found: list[Tensor | None] = [None] * len(firsts)

        def keep(place: int):
            def hook(_module: nn.Module, inputs: tuple) -> None:
                found[place] = inputs[0]
                if isinstance(inputs[0], Skipped):
                    raise NotSkippable
                if not to_end and all(tensor is not None for tensor in found):
                    raise Stop

            return hook

        def run() -> Any:
            found[:] = [None] * len(firsts)
            with (
                hooks([layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(firsts)]),
                suppress(Stop),
            ):
                return self._block.run(index, self._entering[index], self._copy)

        return found, self._forward(index, part, to_end, found, run)

    def output(self, index: int) -> Any:
        """What the block gives in call ``index``, all stages being rounded."""
        end = 0 if self._needs is None else len(self._needs.input)
        run = lambda: self._block.run(index, self._entering[index], self._copy)  # noqa: E731
        return self._forward(index, range(end, end), True, [], run)

    def forget(self) -> None:
        """Begin every forward anew: something else than a stage has changed."""
        for call in self._calls:
            self._room.give_back([*call.inputs.values(), *(kept for kept, _ in call.results.values())])
        self._needs = None
        self._calls = [_Kept() for _ in self._entering]

    def _forward(self, index: int, part: range, to_end: bool, found: list, run: Callable[[], Any]) -> Any:
        if self._needs is not None:
            call = self._calls[index]
            try:
                with forwards_of(*self._resumed(call, part, to_end)):
                    given = run()
                self._settle(call, part, to_end, found, given)
                return given
            except Exception:  # what the block's own code says of what was skipped is not what it says without
                self.forget()
        return run()

    def _resumed(self, call: _Kept, part: range, to_end: bool) -> tuple[list[nn.Module], list[Callable]]:
        """Modules, and what they do in place of their forwards."""
        run = self._to_run(call, part, to_end)
        own = [layer.forward for layer in self._layers]

        def result_of(place: int, x: Any, *args, **kwargs) -> Tensor:
            if place in call.results:
                return self._block.here(call.results[place][0])
            if place not in run:
                return Skipped.of(call.forms[place], [place], x.device)
            kept = call.inputs.get(self._needs.stage_of[place])
            result = own[place](x if kept is None else self._block.here(kept), *args, **kwargs)
            if isinstance(result, Skipped):
                raise NotSkippable
            self._note(call, place, result, part)
            return result

        def whole(place: int, given: Any, path: Path):
            return lambda *_args, **_kwargs: replaced(given, {path: result_of(place, None)})

        modules = [*self._layers]
        forwards = [partial(result_of, place) for place in range(len(modules))]
        for place, (name, given, path) in self._needs.whole.items():
            module = (self._copy or self._block.module).get_submodule(name)
            held = {id(child) for child in module.modules()}
            others = {other for other, layer in enumerate(self._layers) if id(layer) in held} - {place}
            known = place in call.results or (place in run and self._needs.stage_of[place] in call.inputs)
            if known and not others & run:
                modules.append(module)
                forwards.append(whole(place, given, path))
        return modules, forwards

    def _to_run(self, call: _Kept, part: range, to_end: bool) -> set[int]:
        """The layers whose results are needed and not kept, and so on for their inputs."""
        needs, found = self._needs, set()
        open_ = [place for stage in part for place in needs.input[stage]] + ([*needs.output] if to_end else [])
        while open_:
            place = open_.pop()
            if place in found or place in call.results:
                continue
            found.add(place)
            if needs.stage_of[place] not in call.inputs:
                open_ += needs.input[needs.stage_of[place]]
        return found

    # -- what is kept ------------------------------------------------------------------------------------------------

    def _note(self, call: _Kept, place: int, result: Tensor, part: range) -> None:
        call.forms[place] = form_of(result)
        settled = self._copy is not None or self._needs.stage_of[place] < part.start
        if settled and place in self._needs.kept_results and self._room.take(result):
            kept = moved(_on_its_own(result), self._kept_at)
            call.results[place] = kept, kept._version

    def _settle(self, call: _Kept, part: range, to_end: bool, found: list[Tensor | None], given: Any) -> None:
        """After a forward: whether it was what it seems, what of it is kept, and what need not be any longer."""
        if not is_whole(given) or any(kept._version != version for kept, version in call.results.values()):
            raise NotSkippable
        if to_end:
            self._room.give_back(kept for kept, _ in call.results.values())
            call.results.clear()
        for stage in [*call.inputs]:
            self._room.give_back([call.inputs.pop(stage)])
        first = found[0] if found else None
        if not to_end and first is not None and part.start in self._needs.kept_inputs and self._room.take(first):
            call.inputs[part.start] = moved(_on_its_own(first), self._kept_at)


def _on_its_own(tensor: Tensor) -> Tensor:
    """Without what else is in its memory."""
    return tensor if tensor.untyped_storage().nbytes() <= tensor.nbytes else tensor.clone()
