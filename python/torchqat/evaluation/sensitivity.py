"""How the model's output changes when one layer alone is quantized, by width."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torchqat._library import (
    FLOAT,
    Initialize,
    LayerPlan,
    Plan,
    QuantSpec,
    misfit,
    searched_plan,
    size_of_weight,
    weight_of_type,
    with_types,
)
from torchqat.checkpoints.formats import known
from torchqat.data.batch import Batch, to_device
from torchqat.data.given import listed
from torchqat.device import find_device
from torchqat.errors import UserError
from torchqat.evaluation.evaluate import at_least_zero
from torchqat.evaluation.number_types import IN_FLOAT, Width, checked_widths, own_width, usual_widths, word_of
from torchqat.evaluation.numbers import number_distances
from torchqat.kinds import Kind, find_kind
from torchqat.layers.prepared import require_module
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.placement import on_device
from torchqat.model.prepare import prepare
from torchqat.model.vocabulary import check_ids
from torchqat.progress import working
from torchqat.ptq.block import Block, in_floating_point, keeping_no_caches, shortcut
from torchqat.ptq.blocks import open_blocks
from torchqat.ptq.calls import moved
from torchqat.ptq.rest import Rest
from torchqat.ptq.rounding import round_layer
from torchqat.ptq.shared_inputs import find_stages, gather, gather_repeated
from torchqat.ptq.shared_layers import note_shared

_SEARCH = Initialize("mse")


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        name: Its module name.
        spec: How its weight is quantized, but for the width.
        kl: Mean KL to the float model per token, in nats, with this layer alone quantized, by width: bits of an integer, or
            the word of another type, such as ``nvfp4``. Of a type that it cannot have, whose groups do not divide it, none.
        shape: ``(out_features, in_features)``.
        scale_bits: What a checkpoint spends on a scale that is a number, and on what stays in floating point; by default
            what its dtype takes, and 16, but formats may store a wider one.
        input: How its input is quantized.
        format: Of the checkpoint, whose blocks may be others than those that share a scale; any when empty.
    """

    name: str
    spec: QuantSpec
    kl: dict[Width, float]
    shape: tuple[int, int]
    scale_bits: int = 0
    input: QuantSpec | None = None
    format: str = ""

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    def size(self, width: Width) -> int:
        """Bits that a checkpoint spends on the weight at ``width``, scales and zero points included."""
        if width == IN_FLOAT:
            return self.elements * (self.scale_bits or 16)
        spec = weight_of_type(self.spec, word_of(width))
        if self.format:
            return known.size_of_weight(self.format, spec, self.shape, self.scale_bits, self.input)
        return size_of_weight(spec, *self.shape, self.scale_bits)


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Batch],
    bits: Sequence[Width] | None = None,
    kind: Kind | str = "causal_lm",
    device: str | torch.device | None = None,
) -> list[LayerSensitivity]:
    """Measure every planned layer of ``model`` at every width, in one pass over its blocks for all integers of a plan of
    integers, and one for each other type.

    Scales are searched for the least squared error, weighted by the layer's mean squared inputs. The tokens that enter each
    block are kept, so that only the rest of the model is run for a layer.

    Args:
        model: A float model of ``kind``; it stays as it is.
        plan: Which layers, and their granularity and grid.
        batches: As ``evaluate`` takes them.
        bits: Widths to try: 2 to 8, bits of integers, in place of another type in groups of 32; or the words of other
            types, such as ``nvfp4`` and ``mxfp8_e4m3``; ``float`` is not rounded. When ``None``, 2, 3, 4 and 8 in a plan of
            integers, else the types of the plan, 8-bit ones and ``float``.
        kind: ``causal_lm``, ``classifier``, ``sentence_encoder`` or ``seq2seq``.
        device: Where to compute, as recipes say it: a copy of the model goes there, whole, or by blocks where there is no
            room. When ``None``, where the model is.

    Raises:
        UserError: There is no batch, no layer that can have one of the widths, no such width, or no such device.
    """
    batches = listed(batches)
    if not batches:
        raise UserError("Sensitivity needs at least one batch, but there is none.")
    kind = find_kind(kind)
    require_module(model)
    for batch in batches:
        kind.check_measured(batch)
        check_ids(model, batch)
    widths = checked_widths(bits or usual_widths(plan))
    measured: dict[str, dict[Width, float]] = {}
    for one in check_sensitivity(plan, widths):
        for name, kl in _measured(model, one, batches, kind, device).items():
            measured.setdefault(name, {}).update(kl)
    return [_gathered(layer, widths, measured[layer.name]) for layer in plan.layers if layer.name in measured]


@dataclass(frozen=True)
class Pass:
    """What is measured with one prepared model: the bits of each layer's weight under ``plan``, by width."""

    plan: Plan
    bits: dict[str, dict[Width, int]]


def check_sensitivity(plan: Plan, widths: Sequence[Width]) -> list[Pass]:
    """What has to be measured for every layer of ``plan`` at ``widths``, where it can have them.

    Raises:
        UserError: None can have any.
    """
    own: dict[str, dict[Width, int]] = {}
    others: dict[Width, dict[str, dict[Width, int]]] = {}
    layers = [layer for layer in plan.layers if layer.weight]
    for layer in layers:
        for width in widths:
            if width == IN_FLOAT:
                continue
            spec = weight_of_type(layer.weight, word_of(width))
            is_own = width == own_width(layer.weight) or (isinstance(width, int) and layer.weight.takes_widths)
            if is_own or not misfit(spec, layer):
                into = own if is_own else others.setdefault(width, {})
                into.setdefault(layer.name, {})[width] = spec.bits
    if not own and not others:
        words = ", ".join(word_of(width) for width in widths)
        raise UserError(
            f"Sensitivity needs at least one layer whose weight can be one of {words}, but the plan has none."
        )
    integers = all(layer.weight.takes_widths for layer in layers)
    passes = [Pass(plan if integers else searched_plan(plan), own)] if own else []
    for width, bits in others.items():
        passes.append(Pass(searched_plan(with_types(plan, dict.fromkeys(bits, word_of(width)))), bits))
    return passes


def unmeasured(plan: Plan, widths: Sequence[Width]) -> list[LayerSensitivity]:
    """What ``sensitivity`` would give, every KL of it 0: whether there is a mix is known before anything is measured.

    Raises:
        UserError: As ``check_sensitivity``.
    """
    found: dict[str, dict[Width, float]] = {}
    for one in check_sensitivity(plan, widths):
        for name, bits in one.bits.items():
            found.setdefault(name, {}).update(dict.fromkeys(bits, 0.0))
    return [_gathered(layer, list(widths), found[layer.name]) for layer in plan.layers if layer.name in found]


def _gathered(layer: LayerPlan, widths: list[Width], measured: dict[Width, float]) -> LayerSensitivity:
    measured = {**measured, IN_FLOAT: 0.0}
    kl = {width: measured[width] for width in widths if width in measured}
    return LayerSensitivity(
        layer.name, layer.weight, kl, (layer.matrices * layer.out_features, layer.in_features), input=layer.input
    )


def _measured(model: nn.Module, wanted: Pass, batches, kind: Kind, device) -> dict[str, dict[Width, float]]:
    prepared = prepare(copy.deepcopy(model), wanted.plan, "gptq").eval()  # gptq: scales have a place to be put
    found: dict[str, dict[Width, float]] = {}
    with on_device(prepared, None if device is None else find_device(device)) as placed:
        given = [to_device(batch, placed.device) for batch in batches]
        with keeping_no_caches(prepared):
            blocks, hidden = open_blocks(prepared, given, kind.outputs, placed)
        count = sum(len(bits) for bits in wanted.bits.values())
        with in_floating_point(prepared), working("Measuring one layer at a time", count) as part:
            note_shared(prepared, blocks)
            rest = _FromBlock(prepared, kind, given, part)
            for place, block in enumerate(blocks):
                rest.begin_at(blocks[:place], hidden)
                with placed.hold(block.module):
                    found.update(_of_block(block, hidden, wanted.bits, rest))
                if block.name:
                    hidden = [moved(block.run(index, tokens), placed.kept) for index, tokens in enumerate(hidden)]
            rest.begin_at([], hidden)
            found.update(_of_block(Rest(prepared, blocks, kind.outputs), given, wanted.bits, rest))
    return found


def _of_block(
    block: Block, hidden: list, wanted: dict[str, dict[Width, int]], rest: "_FromBlock"
) -> dict[str, dict[Width, float]]:
    """The layers of ``block``, one at a time, the rest of the model being run for each."""
    if not block.own_layers():
        return {}
    stages, _ = find_stages(block, hidden)
    seen = zip(stages, gather(block, stages, hidden), strict=True)
    layers = [(*layer, statistics) for stage, statistics in seen for layer in stage.layers]
    for several in block.repeated:
        gathered = gather_repeated(block, [layer for _, layer in several], hidden)
        layers += [(*layer, statistics) for layer, statistics in zip(several, gathered, strict=True)]
    layers += [(name, layer, None) for name, layer in block.own_layers() if not layer.multiplies_rows]
    found = {}
    for name, layer, statistics in layers:
        if name in wanted:
            found[name] = {width: _at_width(layer, bits, statistics, rest) for width, bits in wanted[name].items()}
    return found


class _FromBlock:
    """The model from one block on, beside what it says in floating point; ``part`` is called for what was measured."""

    def __init__(self, model: nn.Module, kind: Kind, batches: list[Batch], part: Callable[[], None]):
        self.model, self.kind, self.batches, self.part = model, kind, batches, part
        self.wanted = [kind.ask(model, batch) for batch in batches]
        self.begin_at([], batches)

    def begin_at(self, skipped: list[Block], hidden: list) -> None:
        """From now on without the blocks ``skipped``, which would give ``hidden``."""
        self.skipped, self.hidden = skipped, hidden

    def kl(self) -> float:
        total = count = 0.0
        values = []
        for batch, tokens, wanted in zip(self.batches, self.hidden, self.wanted, strict=True):
            with shortcut(self.skipped, tokens):
                found = self.kind.ask(self.model, batch)
            kl = found.kl_to(wanted).double()
            kl = kl if found.counted is None else kl[found.counted]
            total += kl.sum().item()
            count += kl.numel()
            values.append((found.values, wanted.values))
        if values[0][0] is not None:
            ours, theirs = (torch.cat(parts) for parts in zip(*values, strict=True))
            return number_distances(ours, theirs).mean().item()
        return at_least_zero(total / count)


def _at_width(layer: QuantLayer, bits: int, statistics, rest: _FromBlock) -> float:
    layer.set_bits(bits, FLOAT, derive=False)
    round_layer(layer, statistics, _SEARCH)
    kl = rest.kl()
    rest.part()
    layer.set_bits(FLOAT, FLOAT, derive=False)
    return kl
