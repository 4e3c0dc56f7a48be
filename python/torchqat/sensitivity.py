"""How the model's output changes when one layer alone is quantized, by width; and the best mix under a size budget."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchqat._library import FLOAT, Initialize, Plan, QuantSpec, allocate_widths
from torchqat.errors import UserError
from torchqat.linear import QuantLinear
from torchqat.prepare import prepare
from torchqat.ptq.blocks import Block, in_floating_point, open_blocks
from torchqat.ptq.rounding import round_layer
from torchqat.ptq.stages import find_stages, gather

WIDTHS = (2, 3, 4, 8)
# Layers that engines fuse into one matrix, which must then share a width.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

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
    model: nn.Module, plan: Plan, batches: Sequence[Tensor], bits: Sequence[int] = WIDTHS
) -> list[LayerSensitivity]:
    """Measure every planned layer of ``model`` at every width, in one pass over its blocks.

    Scales are searched for the least squared error, weighted by the layer's mean squared inputs. The tokens that enter each
    block are kept, so that only the rest of the model is run for a layer.

    Args:
        model: A float causal language model; it stays as it is.
        plan: Which layers, and their granularity and grid.
        batches: int64 ``[batch, sequence]``.
        bits: Widths to try, 2 to 8.

    Raises:
        UserError: There is no batch, no layer, or the model has no blocks.
    """
    if not batches:
        raise UserError("Sensitivity needs at least one batch, but there is none.")
    prepared = prepare(copy.deepcopy(model), plan, "gptq").eval()  # gptq: scales have a place to be put
    blocks, hidden = open_blocks(prepared, list(batches), _forward)
    if not blocks[0].name:
        raise UserError("Sensitivity needs a model that is a row of blocks, such as model.layers, but found none.")
    with in_floating_point(prepared):
        wanted = [_log_probabilities(prepared, batch) for batch in batches]
        found = []
        for place, block in enumerate(blocks):
            stages, _ = find_stages(block, hidden)
            for stage, statistics in zip(stages, gather(block, stages, hidden), strict=True):
                for name, layer in stage.layers:
                    if layer.weight_spec is not None and not layer.weight_spec.grid.startswith("fp8"):
                        run = _Rest(prepared, blocks[place:], hidden, wanted)
                        kl = {width: _at_width(layer, width, statistics, run) for width in bits}
                        shape = (layer.out_features, layer.in_features)
                        found.append(LayerSensitivity(name, layer.weight_spec, kl, shape))
            hidden = [block.run(index, tokens) for index, tokens in enumerate(hidden)]
    if not found:
        raise UserError("Sensitivity needs at least one layer with an integer weight, but the plan has none.")
    return found


def mixed_widths(layers: Sequence[LayerSensitivity], bits_per_weight: float) -> dict[str, int]:
    """The width of each layer for which the measured KLs are least in sum, within ``bits_per_weight`` on average.

    Layers that engines fuse (q, k and v; gate and up) share theirs. Scales and zero points count.

    Raises:
        UserError: Even the smallest widths need more.
    """
    groups: dict[str, list[LayerSensitivity]] = {}
    for layer in layers:
        groups.setdefault(_fused_name(layer.name), []).append(layer)
    widths = sorted(layers[0].kl)
    options = [
        [(w, sum(layer.kl[w] for layer in group), sum(layer.size(w) for layer in group)) for w in widths]
        for group in groups.values()
    ]
    elements = sum(layer.elements for layer in layers)
    least = sum(min(size for _, _, size in group) for group in options)
    budget = int(bits_per_weight * elements)
    if least > budget:
        raise UserError(f"budget must be at least {least / elements:.3f} bits per weight, but is {bits_per_weight}.")
    chosen = allocate_widths(options, budget)
    return {layer.name: widths[index] for group, index in zip(groups.values(), chosen, strict=True) for layer in group}


def mixed_recipe(text: str, layers: Sequence[LayerSensitivity], widths: dict[str, int]) -> str:
    """The recipe ``text`` with a rule for each width that differs from the planned one, after its own rules."""
    rules = []
    for layer in layers:
        if widths[layer.name] != layer.spec.bits:
            rules.append(f'  - match: "{layer.name}"\n    weight: {_spec_text(layer.spec, widths[layer.name])}\n')
    lines = text.splitlines(keepends=True)
    begin = next(i for i, line in enumerate(lines) if re.match(r"layers\s*:", line))
    if lines[begin].split("#")[0].strip() != "layers:":
        raise UserError(
            "To write a mixed recipe, its layers must be a list in lines of its own, but it is in one line."
        )
    last = next((i for i in range(begin + 1, len(lines)) if re.match(r"[A-Za-z_]", lines[i])), len(lines))
    while last > begin + 1 and not lines[last - 1].strip():
        last -= 1
    head = "".join(lines[:last])
    return (head if head.endswith("\n") else head + "\n") + "".join(rules) + "".join(lines[last:])


def _spec_text(spec: QuantSpec, bits: int) -> str:
    parts = [f"dtype: int{bits}"]
    if spec.granularity == "group":
        parts.append(f"group_size: {spec.group_size}")
    elif spec.granularity == "block":
        parts.append(f"block: [{spec.block[0]}, {spec.block[1]}]")
    else:
        parts.append(f"granularity: {spec.granularity}")
    parts.append(f"grid: {spec.grid}" if spec.symmetric else "symmetric: false")
    return "{" + ", ".join([*parts, f"scale: {spec.scale}", f"scale_dtype: {spec.scale_dtype}"]) + "}"


def _fused_name(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    group = next((group for group in _FUSED if leaf in group), (leaf,))
    return f"{parent}.{'+'.join(group)}"


class _Rest:
    """The model from one block on."""

    def __init__(self, model: nn.Module, blocks: list[Block], hidden: list[Tensor], wanted: list[Tensor]):
        self.model, self.blocks, self.hidden, self.wanted = model, blocks, hidden, wanted

    def kl(self) -> float:
        total = count = 0.0
        for index, (tokens, wanted) in enumerate(zip(self.hidden, self.wanted, strict=True)):
            for block in self.blocks:
                tokens = block.run(index, tokens)
            found = _log_softmax(_head(self.model, tokens))
            total += F.kl_div(found, wanted, reduction="sum", log_target=True).item()
            count += len(wanted)
        return max(0.0, total / count)


def _at_width(layer: QuantLinear, bits: int, statistics, rest: _Rest) -> float:
    layer.set_bits(bits, FLOAT, derive=False)
    round_layer(layer, statistics, _SEARCH)
    kl = rest.kl()
    layer.set_bits(FLOAT, FLOAT, derive=False)
    return kl


def _head(model: nn.Module, hidden: Tensor) -> Tensor:
    """What follows the last block: the final norm, where there is one, and the output head."""
    base = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, model.base_model_prefix)
    norm = getattr(base, "norm", None) or getattr(base, "final_layernorm", None) or nn.Identity()
    return model.get_output_embeddings()(norm(hidden))


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(input_ids=batch, use_cache=False)


def _log_probabilities(model: nn.Module, batch: Tensor) -> Tensor:
    return _log_softmax(_forward(model, batch).logits)


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.float().flatten(0, 1), dim=-1)
