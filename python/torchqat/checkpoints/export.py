"""``export``: a prepared model as a checkpoint that other programs load."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import CheckpointPlan, Format, Plan
from torchqat.checkpoints.convert import convert_layers
from torchqat.checkpoints.dtype import check_precision, stored_dtype
from torchqat.checkpoints.formats.configuration import check_configuration
from torchqat.checkpoints.formats.folder import write_folder
from torchqat.checkpoints.formats.known import find_format, formats
from torchqat.checkpoints.formats.loads import loading_note
from torchqat.checkpoints.formats.mlx import check_architecture, check_products
from torchqat.checkpoints.formats.mxfp4 import check_whole
from torchqat.checkpoints.formats.naming import documents_on_disk, is_compressed_tensors
from torchqat.checkpoints.formats.numbers import check_numbers
from torchqat.checkpoints.formats.onnx import products_note
from torchqat.checkpoints.formats.shards import DEFAULT_SHARD_SIZE, shard_bytes
from torchqat.checkpoints.formats.tensors import (
    cache_note,
    cache_spec,
    check_shared,
    check_state,
    checkpoint_plan,
    floating_layers,
)
from torchqat.checkpoints.formats.tokenizer_files import save_tokenizer
from torchqat.checkpoints.readers.library import check_reads_dense_widths
from torchqat.checkpoints.replaced import exported_folder
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.files import as_path, copy_into
from torchqat.layers.prepared import quant_layers
from torchqat.layers.wrapped import named_as_on_disk
from torchqat.model.calls import calls_note
from torchqat.model.disk_names import DiskNames
from torchqat.model.loader import is_encoder_decoder
from torchqat.model.noted import (
    added_note,
    changed_note,
    check_still_quantized,
    lost_scales_note,
    misfit_note,
    uncalibrated_note,
)
from torchqat.model.towers import generates
from torchqat.progress import counted

FORMATS = tuple(format.name for format in formats())
FOLDERS = tuple(name for name in FORMATS if name not in ("gguf", "onnx"))  # those two are one file


def check_of_gguf(format: str, embeddings: str, ternary: str) -> None:
    """Whether what only GGUF files have is asked of one.

    Raises:
        UserError: It is asked of another format.
    """
    for name, value, usual in (("embeddings", embeddings, "f16"), ("ternary", ternary, "tq2_0")):
        if value != usual and format != "gguf":
            raise UserError(f"{name} is of the format gguf, but format is {format} and {name} is {value}.")


def export(
    model: nn.Module,
    output: str | Path,
    format: str = "compressed-tensors",
    tokenizer=None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    embeddings: str = "f16",
    example: Any = None,
    files: dict[str, Path] | None = None,
    pooling: str = "",
    ternary: str = "tq2_0",
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write ``model`` to the folder ``output``, whole or not at all, and return it; a ``README.md`` of yours there stays.

    The codes are those of the training forward; nothing is quantized again. Layers are converted and written one at a
    time. For a transformers model tensors in a folder have the names and shapes that ``save_pretrained`` gives them, and the
    folder also holds its configuration, ``generation_config.json``, the tokenizer's files, and what transformers left out of
    the model where it came from, such as layers that predict further tokens; what a GGUF file carries of them is in it, and
    beside it, where it is one file with a vocabulary, lies a Modelfile for Ollama.

    Args:
        model: A prepared model whose schedule, if it has one, has ended.
        output: A folder, new, empty, or of an export as torchqat wrote it, which is replaced.
        format: Its name; ``docs/formats.md`` lists them, what each can hold and who loads it.
        tokenizer: Saved beside the model, or in the GGUF file, when given.
        dtype: dtype of scales and of everything that is not quantized; by default the model's own, and float16 in the
            formats that are defined in it (gptq, gptq_v2, awq, gguf).
        max_shard_size: A size such as ``5GB``; larger checkpoints become several files.
        embeddings: For gguf, ``f16`` or ``q8_0``: the type of the token embedding and of the output head.
        example: For onnx, the inputs of the model: a tensor or a tuple of them. Their first dimension is free in the graph,
            and the second, too, where they are token ids.
        files: Others to copy into a folder, by their names there.
        pooling: For gguf of an encoder of texts, how its hidden states become a vector: ``mean``, ``cls`` or ``last``.
        ternary: For gguf, ``tq2_0`` or ``tq1_0``: the type of layers of -1, 0 and 1 in groups of a multiple of 256.
        say: Called with each sentence that users should see: that nothing was calibrated, or a layer never called, what
            the file does not hold of the model, such as a cache of keys and values, which then is a setting of the
            engine, and what loading it takes. By default the logger ``torchqat`` warns.

    Raises:
        UserError: The format is unknown or cannot hold a layer (the formats that can are named), a layer is quantized no
            more, layers that engines fuse differ in scheme, a weight is shared that transformers builds twice, a parameter
            is not finite, beyond the dtype of the file or on the meta device, the model is inside of peft or has adapters, a
            layer is in a wrapper, or the folder cannot be written, or holds what no export wrote.
    """
    output = as_path("output", output)
    shard_bytes(max_shard_size)
    check_of_gguf(format, embeddings, ternary)
    model = named_as_on_disk(model)
    check_still_quantized(model)
    plan = checkpoint_plan(model)
    check_numbers(model, plan)
    chosen = format_for(model, plan, format)
    say = say or logging.getLogger("torchqat").warning
    notes = [uncalibrated_note, misfit_note, changed_note, added_note, lost_scales_note]
    notes = [found(model) for found in notes]
    notes += [calls_note(model, "since prepare"), cache_note(cache_spec(model), format)]
    for note in filter(None, notes):
        say(note)
    dtype = stored_dtype(chosen, dtype)
    if format == "mlx":
        check_products(plan.layers, dtype or next(model.parameters()).dtype)
    for _, layer in quant_layers(model):
        layer.forget_weight()  # what was written through .data is what is exported, and what the model computes with
    layers = counted(convert_layers(model, dtype), f"Writing {format}", len(plan.layers))
    with exported_folder(output) as folder:
        if format == "gguf":
            with needs("hf", "A GGUF file"):
                from torchqat.checkpoints.formats.gguf import write_gguf, write_modelfile

            options = {
                "embeddings": embeddings,
                "max_shard_size": max_shard_size,
                "pooling": pooling,
                "ternary": ternary,
            }
            file = folder / "model.gguf"
            write_gguf(model, layers, plan, file, tokenizer, **options)
            write_modelfile(model, file, tokenizer)
        elif format == "onnx":
            from torchqat.checkpoints.formats.onnx import write_onnx

            write_onnx(model, layers, folder / "model.onnx", example)
        else:
            write_folder(model, layers, plan, chosen, folder, dtype, max_shard_size)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
            copy_into(folder, files or {})
    for note in export_notes(model, format, output):
        say(note)
    return output


def checked_format(name: str, plan: CheckpointPlan) -> Format:
    """The format called ``name``, after a look at whether it can hold what ``plan`` says.

    Raises:
        UserError: There is no such format, or it cannot hold a layer, or engines would fuse two that differ.
    """
    try:
        format = find_format(name)
        format.check(plan)
        format.documents(plan)
    except ValueError as error:
        raise UserError(str(error)) from error
    return format


def format_for(model: nn.Module, plan: CheckpointPlan, name: str) -> Format:
    """The format called ``name``, after a look at whether it can hold ``model``, quantized as ``plan`` says.

    Raises:
        UserError: As ``checked_format``, or the format is of other models, or has no place for the rest of this one, such as
            what is no tensor.
    """
    check_state(model)
    if name != "onnx":  # whose graph is not built from a configuration
        check_shared(model)
    format = checked_format(name, plan)
    if name == "mxfp4":
        check_whole(model, plan)
    if name == "mlx":
        check_architecture(model)
    return format


def check_exports(
    model: nn.Module,
    plan: Plan,
    names: list[str],
    writes_text: bool,
    dtype: torch.dtype | None = None,
    pooling: str = "",
) -> list[str]:
    """Whether ``model`` can be exported, once trained as ``plan`` says, in each format of ``names``.

    Returns what is to be known of how the exports load, a sentence each.

    Args:
        model: Before it is prepared; its parameters may be on the meta device.
        plan: What becomes of its layers.
        names: Of formats.
        writes_text: Whether it is a language model.
        dtype: What the checkpoints are asked to be in.
        pooling: How an encoder makes vectors, as of ``export``.

    Raises:
        UserError: One cannot hold a layer, its scales in that dtype, or the model, or its configuration cannot be written.
    """
    check_configuration(model)
    checked = CheckpointPlan(plan.layers, floating_layers(model, plan.layers), plan.kv_cache)
    on_disk, notes = DiskNames(model), []
    for name in names:
        format = format_for(model, checked, name)
        if name in FOLDERS:
            documents = documents_on_disk(model, checked, format, on_disk)
            if is_compressed_tensors(name):
                notes.append(loading_note(model, json.loads(documents["config.json"])))
        stored = stored_dtype(format, dtype) or next(model.parameters()).dtype
        check_precision(plan.layers, stored)
        if name == "mlx":
            check_products(plan.layers, stored)
        if name == "compressed-tensors-0.18":
            check_reads_dense_widths()
        if name == "gguf":
            with needs("hf", "A GGUF file"):
                from torchqat.checkpoints.formats.gguf_architectures import check_pooling, check_types

            check_types(model, plan.layers)
            check_pooling(model, pooling)
        if name == "onnx" and generates(model) and is_encoder_decoder(model.config):
            raise UserError(
                "onnx takes modules that run once, but an encoder with a decoder runs its decoder for each token; "
                "compressed-tensors is loaded by transformers."
            )
        if name == "onnx":
            notes.append(products_note(plan.layers))
        if name == "onnx" and writes_text:
            raise UserError(
                "onnx takes modules other than language models, by torchqat.export(model, folder, 'onnx', example=inputs); "
                "for a language model, gguf runs on any machine."
            )
    return [note for note in notes if note]


def export_notes(model: nn.Module, format: str, folder: Path | None = None) -> list[str]:
    """What users should know of an export of ``model`` in that format, a sentence each.

    What it has not of the model and, where it is the ``folder``, what transformers needs to be told to load it.
    """
    if folder is not None and is_compressed_tensors(format) and (folder / "config.json").is_file():
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        note = loading_note(model, settings.get("quantization_config", settings))
        return [note] if note else []
    if format == "onnx":
        note = products_note(checkpoint_plan(model).layers)
        return [note] if note else []
    if format != "gguf":
        return []
    from torchqat.checkpoints.formats.gguf_architectures import gguf_notes

    return gguf_notes(model)
