"""How the model's output changes when one layer alone is quantized, by width; and the best mix under a size budget."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torchqat._library import FLOAT, Initialize, Plan, QuantSpec
from torchqat.data.batch import Batch, to_device
from torchqat.device import find_device
from torchqat.errors import UserError
from torchqat.evaluation.numbers import number_distances
from torchqat.kinds import Kind, find_kind
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.placement import on_device
from torchqat.model.prepare import prepare
from torchqat.progress import working
from torchqat.ptq.block import Block, Forward, WholeModel, in_floating_point, keeping_no_caches, shortcut
from torchqat.ptq.blocks import open_blocks
from torchqat.ptq.calls import moved
from torchqat.ptq.rounding import round_layer
from torchqat.ptq.shared_inputs import find_stages, gather

WIDTHS = (2, 3, 4, 8)

_SEARCH = Initialize("mse")


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer.

    Attributes:
        name: Its module name.
        spec: How its weight is quantized, but for the width.
        kl: Mean KL to the float model per token, in nats, with this layer alone quantized, by width.
        shape: ``(out_features, in_features)``.
        scale_bits: What a checkpoint spends on a scale; by default what its dtype takes, but formats may store a wider one.
    """

    name: str
    spec: QuantSpec
    kl: dict[int, float]
    shape: tuple[int, int]
    scale_bits: int = 0

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    def size(self, bits: int) -> int:
        """Bits that a checkpoint spends on the weight at ``bits``, scales and zero points included."""
        rows, cols = self.shape
        stored = 2 if bits <= 2 else 4 if bits <= 4 else 8
        scale = self.scale_bits or (32 if self.spec.scale_dtype == "float32" else 16)
        per_block = scale + (0 if self.spec.symmetric else stored)
        return self.elements * stored + self.spec.block_count(rows, cols) * per_block


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    plan: Plan,
    batches: Sequence[Batch],
    bits: Sequence[int] = WIDTHS,
    kind: Kind | str = "causal_lm",
    device: str | torch.device | None = None,
) -> list[LayerSensitivity]:
    """Measure every planned layer of ``model`` at every width, in one pass over its blocks.

    Scales are searched for the least squared error, weighted by the layer's mean squared inputs. The tokens that enter each
    block are kept, so that only the rest of the model is run for a layer.

    Args:
        model: A float model of ``kind``; it stays as it is.
        plan: Which layers, and their granularity and grid.
        batches: As ``evaluate`` takes them.
        bits: Widths to try, 2 to 8.
        kind: ``causal_lm``, ``classifier``, ``sentence_encoder`` or ``seq2seq``.
        device: Where to compute, as recipes say it: a copy of the model goes there, whole, or by blocks where there is no
            room. When ``None``, where the model is.

    Raises:
        UserError: There is no batch or no layer, or there is no such device.
    """
    if not batches:
        raise UserError("Sensitivity needs at least one batch, but there is none.")
    kind = find_kind(kind) if isinstance(kind, str) else kind
    prepared = prepare(copy.deepcopy(model), plan, "gptq").eval()  # gptq: scales have a place to be put
    found: dict[str, LayerSensitivity] = {}
    with on_device(prepared, None if device is None else find_device(device)) as placed:
        given = [to_device(batch, placed.device) for batch in batches]
        with keeping_no_caches(prepared):
            blocks, hidden = open_blocks(prepared, given, kind.outputs, placed)
        measured = sum(layer.weight is not None and layer.weight.takes_widths for layer in plan.layers) * len(bits)
        with in_floating_point(prepared), working("Measuring one layer at a time", measured) as part:
            rest = _Rest(prepared, kind, given, part)
            for place, block in enumerate(blocks):
                rest.begin_at(blocks[:place], hidden)
                with placed.hold(block.module):
                    found.update(_of_block(block, hidden, bits, rest))
                if block.name:
                    hidden = [moved(block.run(index, tokens), placed.kept) for index, tokens in enumerate(hidden)]
            rest.begin_at([], hidden)
            whole = _Outside(prepared, kind.outputs, {name for block in blocks for name, _ in block.layers()})
            found.update(_of_block(whole, given, bits, rest))
    if not found:
        raise UserError("Sensitivity needs at least one layer with an integer weight, but the plan has none.")
    return [found[layer.name] for layer in plan.layers if layer.name in found]


def _of_block(block: Block, hidden: list, bits: Sequence[int], rest: "_Rest") -> dict[str, LayerSensitivity]:
    """The layers of ``block``, one at a time, the rest of the model being run for each."""
    if not block.layers():
        return {}
    stages, _ = find_stages(block, hidden)
    seen = zip(stages, gather(block, stages, hidden), strict=True)
    layers = [(*layer, statistics) for stage, statistics in seen for layer in stage.layers]
    layers += [(name, layer, None) for name, layer in block.layers() if not layer.multiplies_rows]
    found = {}
    for name, layer, statistics in layers:
        if layer.weight_spec is not None and layer.weight_spec.takes_widths:
            kl = {width: _at_width(layer, width, statistics, rest) for width in bits}
            found[name] = LayerSensitivity(name, layer.weight_spec, kl, layer.matrix_shape)
    return found


class _Outside(WholeModel):
    """The layers of a model that are in none of its blocks."""

    def __init__(self, model: nn.Module, forward: Forward, inside: set[str]):
        super().__init__(model, forward)
        self._inside = inside

    def layers(self) -> list[tuple[str, QuantLayer]]:
        return [(name, layer) for name, layer in super().layers() if name not in self._inside]


class _Rest:
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
        return max(0.0, total / count)


def _at_width(layer: QuantLayer, bits: int, statistics, rest: _Rest) -> float:
    layer.set_bits(bits, FLOAT, derive=False)
    round_layer(layer, statistics, _SEARCH)
    kl = rest.kl()
    rest.part()
    layer.set_bits(FLOAT, FLOAT, derive=False)
    return kl
