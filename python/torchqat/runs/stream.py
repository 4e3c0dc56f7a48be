"""Post-training quantization of a folder into a folder, in the memory of one block however deep the model is.

Weights are read from safetensors when their block is at work, and written as soon as it is rounded. What stays between two
blocks are the tokens.
"""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import LayerPlan, Plan, Recipe
from torchqat.checkpoints.export import check_exports, export_notes
from torchqat.checkpoints.replaced import exported_folder
from torchqat.data.batch import Batch, to_device
from torchqat.data.given import listed
from torchqat.device import CPU, find_device
from torchqat.errors import UserError, first_of
from torchqat.files import as_path, copy_into
from torchqat.layers.experts import QuantExperts
from torchqat.layers.kv_cache import attach
from torchqat.model.blocks import NamedModules, block_lists, hooks
from torchqat.model.calls import checked_calls
from torchqat.model.loading import check_streams
from torchqat.model.outline import CheckpointReader, empty, skeleton
from torchqat.model.placement import Placed
from torchqat.model.prepare import make_plan, replace_layers
from torchqat.model.source import double_note, doubles_of, tensors_of
from torchqat.model.vocabulary import check_ids
from torchqat.ops import release_kept_memory
from torchqat.ptq.block import Block
from torchqat.ptq.unpadded import unpadded
from torchqat.ptq.walk import initialize
from torchqat.runs.cache_note import cache_note
from torchqat.runs.stream_writer import Streamed, StreamWriter

# Those that can be written block by block.
_FORMATS = (
    "compressed-tensors", "compressed-tensors-0.18", "gptq", "gptq_v2", "awq", "gguf", "modelopt", "safetensors",
)  # fmt: skip


def quantize_folder(
    source: str | Path,
    output: str | Path,
    recipe: Recipe,
    batches: Iterable[Batch],
    tokenizer=None,
    on_block: Callable[[int, int], None] = lambda _done, _total: None,
    files: dict[str, Path] | None = None,
    device: str | torch.device | None = None,
) -> Streamed:
    """Quantize the model in ``source`` as the recipe's ``initialize`` says and write it to ``output``, whole or not at all.

    Tensors are read and written by the names and in the shapes that transformers gives them on disk. What it passes over
    there, such as layers that predict further tokens, is copied as it is.

    Args:
        source: A Hugging Face folder of a causal language model, in safetensors.
        output: A folder, new, empty, or of an export as torchqat wrote it, which is replaced.
        recipe: Its rules may name layers of the blocks, and the first of ``export`` is the format; ``hadamard`` and
            ``objective: model`` need the whole model and are refused, and so are formats that need it.
        batches: Calibration tokens, int64 ``[batch, sequence]``, or dicts of ``input_ids`` and, where rows are filled up,
            ``attention_mask``.
        tokenizer: Saved beside the model, or in the GGUF file, when given.
        on_block: Called with the number of finished blocks and of all.
        files: Others to copy beside them, such as a processor's, by their names there.
        device: Where to compute; what the recipe says when ``None``. Between two blocks, tokens lie on the host.

    Raises:
        RecipeError: The recipe does not fit the model.
        UserError: The recipe needs the whole model, or there is no batch of tokens that it embeds, or a file is missing or
            damaged.
    """
    as_path("source", source)
    output = as_path("output", output)
    batches = listed(batches)
    if not batches:
        raise UserError(
            f"initialize.method {recipe.initialize.method} needs at least one calibration batch, but there is none."
        )
    placed = _Placed(find_device(recipe.device if device is None else device))
    reader, model, plan, lists = opened_to_stream(source, recipe)
    for batch in batches:
        check_ids(model, batch, by_itself=True)
    if plan.kv_cache is not None:
        attach(model, plan.kv_cache)
    with exported_folder(output) as folder:
        writer = _writer(model, plan, folder, recipe.exports[0], reader, tokenizer)
        at_work = _AtWork(model, plan, recipe, reader, writer, lists, on_block, placed.device)
        with at_work.loads_what_runs():
            calibration = initialize(model, list(unpadded(batches)), placed.forward, recipe.initialize, placed, at_work)
        writer.add_rest(at_work.names)
        result = writer.finish()
        if recipe.exports[0] != "gguf":  # which has all in it
            copy_into(folder, files or {})
        result.calibration, result.folder = calibration, output
    calibration.warnings += _notes(model, reader, recipe.exports[0], output)
    if doubles := double_note(doubles_of(tensors_of(str(source))), str(source), recipe.model.dtype):
        calibration.warnings.append(doubles)
    if note := cache_note(plan.kv_cache, recipe.exports[0], recipe.engine):
        calibration.warnings.append(note)
    return result


def _writer(model: nn.Module, plan: Plan, folder: Path, format: str, reader: CheckpointReader, tokenizer):
    if format != "gguf":
        return StreamWriter(model, plan, folder, format, reader, tokenizer)
    from torchqat.runs.stream_gguf import GgufStreamWriter

    return GgufStreamWriter(model, plan, folder, reader, tokenizer)


def _notes(model: nn.Module, reader: CheckpointReader, format: str, folder: Path) -> list[str]:
    """What users should know of the checkpoint, a sentence each."""
    passed_over, notes = reader.passed_over(), export_notes(model, format, folder)
    if passed_over:
        done = "is not in the GGUF file" if format == "gguf" else "was copied as it is"
        notes.append(f"What transformers passes over {done}: {first_of(passed_over)}.")
    return notes


def opened_to_stream(
    source: str | Path, recipe: Recipe
) -> tuple[CheckpointReader, nn.Module, Plan, list[NamedModules]]:
    """The tensors of ``source``, its model without weights, the plan and the lists of blocks that hold planned layers.

    Raises:
        RecipeError: The recipe does not fit the model.
        UserError: The recipe needs the whole model, or the folder has no safetensors, is quantized already, lacks a tensor
            of the model, or has one that the model has not.
    """
    if recipe.model.kind != "causal_lm":
        raise UserError(
            f"To be streamed, model.kind must be causal_lm, but is {recipe.model.kind}; run the recipe without streaming."
        )
    check_streams(str(source))
    model = skeleton(source, recipe.model.dtype)
    reader = CheckpointReader(source, model)
    reader.check_complete(model)
    reader.passed_over()
    plan = make_plan(model, recipe)
    lists = block_lists(model, nn.Linear)
    _check(model, plan, recipe, [name for blocks in lists for name, _ in blocks])
    planned = tuple(layer.name for layer in plan.layers)
    held = [
        blocks for blocks in lists if any(name.startswith(blocks[0][0].rpartition(".")[0] + ".") for name in planned)
    ]
    return reader, model, plan, held


def _check(model: nn.Module, plan: Plan, recipe: Recipe, blocks: list[str]) -> None:
    if recipe.exports[0] not in _FORMATS:
        raise UserError(
            f"To be streamed, export must begin with {' or '.join(_FORMATS)}, but begins with {recipe.exports[0]}."
        )
    if "hadamard" in recipe.initialize.transforms:
        raise UserError("hadamard rotates the whole model, so it cannot be streamed; run the recipe without streaming.")
    if recipe.initialize.objective == "model":
        raise UserError("initialize.objective must be auto or layer for a model that is streamed, but is model.")
    if not blocks:
        raise UserError(
            "To be streamed, a model must be a row of blocks with linear layers, such as model.layers, but a "
            f"{type(model).__name__} is not."
        )
    inside = tuple(name + "." for name in blocks)
    outside = next((layer.name for layer in plan.layers if not layer.name.startswith(inside)), None)
    if outside is not None:
        raise UserError(f"To be streamed, a recipe must quantize layers of blocks alone, but a rule names {outside}.")
    weightless = next((layer.name for layer in plan.layers if layer.weight is None), None)
    if weightless is not None:
        raise UserError(f"To be written, every planned layer must have a quantized weight, but {weightless} has not.")
    if recipe.exports[0] == "gguf":
        check_exports(model, plan, ["gguf"], writes_text=True)


class _Placed(Placed):
    """Blocks on the device while they are at work, and tokens on the host."""

    def __init__(self, device: torch.device):
        super().__init__(device, CPU)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        batch = to_device(batch, self.device)
        if isinstance(batch, dict):
            return model(
                **{name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}, use_cache=False
            )
        return model(input_ids=batch, use_cache=False)

    @contextmanager
    def hold(self, module: nn.Module) -> Iterator[None]:
        module.to(self.device)
        yield
        module.to(CPU)


class _AtWork:
    """Loads what runs when it runs: layers outside the blocks on demand, a block while it is calibrated."""

    def __init__(self, model, plan: Plan, recipe: Recipe, reader: CheckpointReader, writer, lists, on_block, device):
        self.model, self.plan, self.recipe, self.reader, self.writer = model, plan, recipe, reader, writer
        self.lists, self.device = lists, device
        self.names = [name for blocks in lists for name, _ in blocks]
        self.on_block, self.done = on_block, 0

    @contextmanager
    def loads_what_runs(self) -> Iterator[None]:
        inside = {id(m) for name in self.names for m in self.model.get_submodule(name).modules()}
        outside = [(n, m) for n, m in self.model.named_modules() if id(m) not in inside]

        def load(name: str, module: nn.Module) -> None:
            if any(parameter is not None and parameter.is_meta for parameter in module._parameters.values()):
                self.reader.fill(module, name, recurse=False)
                module._apply(lambda tensor: tensor.to(self.device), recurse=False)

        for _, module in outside:
            module._buffers.update(
                {n: b.to(self.device) for n, b in module._buffers.items() if b is not None and not b.is_meta}
            )
        with hooks([m.register_forward_pre_hook(lambda module, _, name=n: load(name, module)) for n, m in outside]):
            yield

    def _planned(self, block: Block) -> list[LayerPlan]:
        return [layer for layer in self.plan.layers if layer.name.startswith(block.name + ".")]

    @contextmanager
    def reads(self, block: Block) -> Iterator[None]:
        self.reader.fill(block.module, block.name)
        block.module.to(self.device)
        layers = [layer.name for layer in self._planned(block) if layer.type != QuantExperts.kind]
        with checked_calls(self.model, layers):
            yield
        empty(block.module)
        release_kept_memory()  # experts are read in pieces, small enough to be kept

    @contextmanager
    def __call__(self, block: Block) -> Iterator[None]:
        if self.done == 0:
            for name, module in self.model.named_children():
                if name not in self.names:
                    empty(module)  # the embedding has done its part
        self.reader.fill(block.module, block.name)
        replace_layers(self.model, self._planned(block), self.recipe.initialize, "none")
        yield
        self.writer.add_block(block)
        empty(block.module)
        for _, layer in block.layers():
            layer.forget_weight()
            empty(layer, buffers=True)
        gc.collect()  # what tracebacks of hooks that ended a forward early still hold
        release_kept_memory()
        self.done += 1
        self.on_block(self.done, len(self.names))
