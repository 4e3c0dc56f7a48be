"""The model that a run ends with as a GGUF file, in the memory of one block: from the state on disk, block by block.

What a recipe quantizes outside the blocks, a token embedding or an output head, is in memory from the beginning.
"""

import copy
import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import LayerPlan
from torchqat.checkpoints.dtype import stored_dtype
from torchqat.checkpoints.formats.known import find_format
from torchqat.checkpoints.replaced import exported_folder
from torchqat.errors import UserError
from torchqat.layers.kv_cache import attach
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.model.blocks import block_lists
from torchqat.model.outline import empty
from torchqat.model.prepare import replace_layers
from torchqat.progress import counted
from torchqat.ptq.block import Block
from torchqat.runs.kept_state import KeptState
from torchqat.runs.run import Run
from torchqat.runs.stream_gguf import GgufStreamWriter
from torchqat.verification.result import Verification
from torchqat.verification.settings import differing_settings


def goes_by_blocks(run: Run) -> bool:
    """Whether the run's model has blocks, and an outline that takes no memory."""
    outline = run.float_model.outline
    weightless = all(parameter.is_meta for parameter in outline.parameters())
    return weightless and bool(block_lists(outline, nn.Linear)) and all(layer.weight for layer in run.plan.layers)


@torch.no_grad()
def export_by_blocks(run: Run, state: KeptState, output: Path, **options: Any) -> Verification:
    """Write the model of ``state`` to the folder ``output`` as ``export`` would, each tensor read back when it is there.

    Args:
        run: Whose model it is; ``goes_by_blocks``.
        state: What it ends with.
        output: A folder, as of ``export``.
        options: ``dtype``, ``embeddings``, ``max_shard_size`` and ``ternary``, as ``export`` takes them.

    Raises:
        UserError: As ``export``, or a tensor does not read back as training had it.
    """
    model = copy.deepcopy(run.float_model.outline)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # which an outline is made without
    if run.plan.kv_cache is not None:
        attach(model, run.plan.kv_cache)
    names = [name for blocks in block_lists(model, nn.Linear) for name, _ in blocks]
    inside = tuple(f"{name}." for name in names)
    outside = [layer for layer in run.plan.layers if not layer.name.startswith(inside)]
    _fill(run, model, outside, state)
    with exported_folder(output) as folder:
        stored_dtype(find_format("gguf"), options.pop("dtype", None))
        writer = GgufStreamWriter(model, run.plan, folder, state, run.tokenizer, pooling=run.kind.pooling, **options)
        for name in counted(names, "Writing gguf", len(names)):
            _write_block(run, model, name, state, writer)
        for layer in outside:
            writer.add_layer_alone(layer.name, model.get_submodule(layer.name))
        writer.add_rest(names)
        writer.finish()
        settings = differing_settings(folder, "gguf", model)
    return Verification(len(run.plan.layers), {}, [], [], settings=settings)


def _fill(run: Run, model: nn.Module, layers: list[LayerPlan], state: KeptState) -> None:
    """Put ``layers``, which lie outside the blocks, and their state into ``model``; those that are tied stay so."""
    for layer in layers:
        held = model.get_submodule(layer.name).weight
        if held.is_meta:
            read = nn.Parameter(state[f"{layer.name}.weight"].to(held.dtype), requires_grad=False)
            for module in model.modules():
                module._parameters.update({n: read for n, p in module._parameters.items() if p is held})
    replace_layers(model, layers, run.recipe.initialize)
    for layer in layers:
        _load(model.get_submodule(layer.name), state, layer.name)


def _write_block(run: Run, model: nn.Module, name: str, state: KeptState, writer: GgufStreamWriter) -> None:
    module = model.get_submodule(name)
    module.to_empty(device="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.zero_()  # what scales are derived from before those of the state are there
    prefix = f"{name}."
    replace_layers(model, [layer for layer in run.plan.layers if layer.name.startswith(prefix)], run.recipe.initialize)
    _load(module, state, name)
    writer.add_block(Block(name, module))
    empty(module, buffers=True)
    for _, layer in quant_layers(module):
        layer.forget_weight()
    gc.collect()


def _load(module: nn.Module, state: KeptState, name: str) -> None:
    module.load_state_dict(state.inside(name), strict=True)
    for place, layer in quant_layers(module):
        _check_width(f"{name}.{place}" if place else name, layer)


def _check_width(name: str, layer: QuantLayer) -> None:
    if layer.weight_bits != layer.weight_spec.bits:
        raise UserError(
            f"{name} must be at its exported width, {layer.weight_spec.bits} bits, but is at {layer.weight_bits}."
        )
