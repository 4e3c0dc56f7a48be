"""The layers of a block in the order in which they run, those that share an input together, and its statistics."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from torchqat._library import InputStatistics
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.blocks import hooks
from torchqat.model.calls import same_place
from torchqat.ptq.block import Block, Stop
from torchqat.ptq.skipped import form_of

_VIEWS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


@dataclass
class Stage:
    """Layers that share an input and multiply the same rows of it.

    Attributes:
        layers: With their full names.
        producer: The module whose result is that input, where it is one's; a norm as a rule.
        consumers: Every linear layer that takes it, quantized or not.
        misses_consumers: Whether one beside a consumer in a list, as an expert is, was not called by this batch: by others
            it may take the same.
        routed: Whether its tokens are some of many that a router chose, so that the float model may send it others.
        forms: What each layer gave, without elements; fewer where one gave something else, or several times.
    """

    layers: list[tuple[str, QuantLayer]]
    producer: nn.Module | None
    consumers: list[nn.Linear]
    misses_consumers: bool = False
    routed: bool = False
    forms: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def find_stages(block: Block, hidden: list) -> tuple[list[Stage], list[str]]:
    """The stages of ``block`` in order, and the names of layers that no batch reaches.

    In no stage are layers that the model has in another place, too, nor those that one call runs several times, of which
    ``block`` takes note.
    """
    layers = {name: layer for name, layer in block.own_layers() if layer.multiplies_rows}
    often: set[str] = set()
    seen: list[tuple[str, Tensor]] = []
    made: list[tuple[nn.Module, Tensor]] = []
    taken: list[tuple[nn.Linear, Tensor]] = []
    names = {id(layer): name for name, layer in layers.items()}
    rows: list[dict[str, int]] = []
    forms: dict[str, list[Tensor]] = {}

    def watch(module: nn.Module, inputs: tuple, output) -> None:
        made.append((module, output))
        if isinstance(module, nn.Linear):
            taken.append((module, inputs[0]))
        if id(module) in names and all(name != names[id(module)] for name, _ in seen):
            seen.append((names[id(module)], inputs[0]))
        if id(module) in names:
            rows[-1][names[id(module)]] = inputs[0].shape[:-1].numel()
            forms.setdefault(names[id(module)], []).append(form_of(output) if isinstance(output, Tensor) else None)

    with hooks([m.register_forward_hook(watch) for m in block.module.modules() if m is not block.module]):
        for index, batch in enumerate(hidden):
            rows.append({})
            forms.clear()
            block.run(index, batch)
            often |= {name for name, given in forms.items() if len(given) > 1}
            if len(seen) == len(layers):
                break
            made.clear()
            taken.clear()
    block.repeated = _together([(name, tensor) for name, tensor in seen if name in often], layers)
    stages: list[tuple[Tensor, Stage]] = []
    for name, tensor in seen:
        if name in often:
            continue
        view = _view(layers[name])
        stage = next((s for given, s in stages if given is tensor and _view(s.layers[0][1]) == view), None)
        if stage is None:
            producer = next((module for module, output in made if output is tensor), None)
            consumers = [module for module, given in taken if given is tensor]
            missed = _misses(block.module, consumers, taken)
            stage = Stage([], producer, consumers, missed, _is_routed(block, name, rows))
            stages.append((tensor, stage))
        stage.layers.append((name, layers[name]))
        stage.forms += forms[name] if len(forms.get(name, [])) == 1 and forms[name][0] is not None else []
    reached = {name for name, _ in seen}
    return [stage for _, stage in stages], [name for name in layers if name not in reached]


def _misses(module: nn.Module, consumers: list[nn.Linear], taken: list[tuple[nn.Linear, Tensor]]) -> bool:
    """Whether a linear layer beside one of ``consumers`` in a list of ``module`` is none of those that were called."""
    called, own = {id(layer) for layer, _ in taken}, {id(layer) for layer in consumers}
    linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    idle = [name for name, layer in linear if id(layer) not in called]
    return any(same_place(module, name, other) for name, layer in linear if id(layer) in own for other in idle)


def _together(given: list[tuple[str, Tensor]], layers: dict[str, QuantLayer]) -> list[list[tuple[str, QuantLayer]]]:
    """``layers`` by the tensor that they were given."""
    groups: dict[int, list[tuple[str, QuantLayer]]] = {}
    for name, tensor in given:
        groups.setdefault(id(tensor), []).append((name, layers[name]))
    return [*groups.values()]


def _is_routed(block: Block, name: str, rows: list[dict[str, int]]) -> bool:
    """Whether modules beside that of ``name`` in one list were given other numbers of ``rows`` than it, as experts are."""
    start = len(block.name) + 1 if block.name else 0
    others = {other for batch in rows for other in batch if same_place(block.module, name[start:], other[start:])}
    return any(batch.get(other, 0) != batch.get(name, 0) for batch in rows for other in others)


def _view(layer: QuantLayer) -> tuple:
    """How a convolution takes rows out of its input: others that share it see other rows."""
    return tuple(getattr(layer, name, None) for name in _VIEWS)


@torch.no_grad()
def gather(
    block: Block,
    stages: list[Stage],
    hidden: list,
    original: nn.Module | None = None,
    original_hidden: list | None = None,
) -> list[InputStatistics]:
    """Statistics of the input of each stage, as its layers see it: rounded, where it is rounded in every call.

    Args:
        block: The block, its layers as they are in force.
        stages: Some of its stages.
        hidden: What enters the block, per batch.
        original: The float block, to gather the drift of the quantized one; runs on ``original_hidden``.
        original_hidden: What enters it.
    """
    layers = [stage.layers[0][1] for stage in stages]
    twins = [] if original is None else twins_of(block.module, original, layers)

    def given(index: int) -> list[Tensor | None]:
        return _inputs(layers, lambda: block.run(index, hidden[index]))

    def wanted(index: int) -> list[Tensor | None]:
        return _inputs(twins, lambda: block.run(index, original_hidden[index], original))

    return collect(stages, len(hidden), given, None if original is None else wanted)


@torch.no_grad()
def gather_repeated(block: Block, layers: list[QuantLayer], hidden: list) -> list[InputStatistics]:
    """Statistics of all that each of ``layers`` is given in ``block``, however often a call runs it."""
    gathered = [InputStatistics(layer.matrix_shape[1]) for layer in layers]

    def take(layer: QuantLayer, statistics: InputStatistics):
        return lambda _module, inputs: statistics.add(layer.input_rows(_as_seen(layer, inputs[0])))

    with hooks(
        [layer.register_forward_pre_hook(take(layer, found)) for layer, found in zip(layers, gathered, strict=True)]
    ):
        for index, entering in enumerate(hidden):
            block.run(index, entering)
    return gathered


@torch.no_grad()
def collect(
    stages: list[Stage],
    calls: int,
    given: Callable[[int], list[Tensor | None]],
    wanted: Callable[[int], list[Tensor | None]] | None = None,
) -> list[InputStatistics]:
    """Statistics of the input of each stage, of all calls.

    Args:
        stages: Some stages of a block.
        calls: How many.
        given: The input of each stage in a call, by its number; ``None`` where none of its layers was reached.
        wanted: The same of the float model, to gather the drift.
    """
    drift = wanted is not None
    gathered = [InputStatistics(stage.layers[0][1].matrix_shape[1], drift) for stage in stages]
    for index in range(calls):
        beside, own = wanted(index) if drift else [None] * len(stages), given(index)
        for stage, statistics, x, other in zip(stages, gathered, own, beside, strict=True):
            if x is not None:
                layer = stage.layers[0][1]
                rows = layer.input_rows(_beside(stage, x, other)) if drift else None
                statistics.add(layer.input_rows(_as_seen(layer, x)), rows)
    return gathered


def _beside(stage: Stage, given: Tensor, wanted: Tensor | None) -> Tensor:
    """The float model's tokens, or, where it may have sent others to this layer (a router's choice), no drift at all."""
    pairs = not stage.routed and wanted is not None and wanted.shape == given.shape
    return wanted if pairs else given


def _as_seen(layer: QuantLayer, x: Tensor) -> Tensor:
    return layer.quantized_input(x) if layer.input_spec is not None and layer.input_spec.dynamic else x


def _inputs(layers: list[nn.Module], run) -> list[Tensor | None]:
    """The input of each layer in one forward, which ends as soon as all have theirs."""
    found: list[Tensor | None] = [None] * len(layers)

    def keep(place: int):
        def hook(_module: nn.Module, inputs: tuple) -> None:
            found[place] = inputs[0]
            if all(tensor is not None for tensor in found):
                raise Stop

        return hook

    with hooks([layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(layers)]), suppress(Stop):
        run()
    return found


def twins_of(module: nn.Module, copy: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """Those of ``layers`` of ``module`` in its ``copy``."""
    names = {id(child): name for name, child in module.named_modules()}
    twins = dict(copy.named_modules())
    return [twins[names[id(layer)]] for layer in layers]
