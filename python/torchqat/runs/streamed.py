"""A run that never holds its model: streamed into a checkpoint, and held against what was rounded when it was."""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from torchqat._library import Recipe
from torchqat.checkpoints.readers import format_of, read_layers_of
from torchqat.checkpoints.readers.reading import read_file
from torchqat.data.batch import digest
from torchqat.data.batches import shortfall
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.files import copy_into, read_json, size_of, write_json
from torchqat.model.source import tensors_of
from torchqat.reports.report import Variant
from torchqat.runs.cards import put_card, put_terms
from torchqat.runs.coverage import bits_over_all
from torchqat.runs.export_dtype import stored_bits
from torchqat.runs.hub import check_hub
from torchqat.runs.page import write_page
from torchqat.runs.pushed import push_last
from torchqat.runs.run import Run
from torchqat.runs.steps import remember_export
from torchqat.runs.stream import opened_to_stream, quantize_folder
from torchqat.runs.stream_writer import Streamed
from torchqat.runs.variants import initialized_name
from torchqat.verification.result import Verification

# In the run's folder: the SHA-256 of each tensor.
_DIGESTS = Path("checkpoints") / "streamed.json"
# The configuration that was written beside them; runs of before have none.
_CONFIGURATION = Path("checkpoints") / "streamed_config.json"


def stream(run: Run, resume: bool = False, restart: bool = False, push_to_hub: str = "") -> Streamed:
    """Quantize the model of ``run``, which trains nothing, block by block; keep what ``verify_streamed`` needs.

    Raises:
        UserError: As ``quantize_folder`` and ``Run.opened``.
    """
    run.streamed = True
    if run.recipe.mode == "auto":
        raise UserError(
            "To be streamed, mode must be recipe, but is auto, which decides by figures that a streamed run does not take."
        )
    if run.dtype:
        raise UserError("To be streamed, dtype must not be given, since a streamed checkpoint is in model.dtype.")
    if push_to_hub:
        check_hub(push_to_hub)
    opened_to_stream(run.model_path, run.recipe)
    with run.progress.listens(), run.opened(resume, restart):
        target = run.folder / "exports" / run.recipe.exports[0]
        asked = run.recipe.data.calibration

        files = run.kind.companions(run.model_path)
        known = {"tokenizer": run.tokenizer, "files": files, "device": run.device}
        found = quantize_folder(run.model_path, target, run.recipe, run.data.calibration, **known)
        short = shortfall(run.data.calibration, asked.samples, asked.sequence_length)
        warnings = [*([short] if short else []), *found.calibration.warnings, *_left_out(run.recipe)]
        for warning in warnings:
            run.progress.say(f"Note: {warning}")
        write_json(run.folder / _DIGESTS, found.digests)
        if (found.folder / "config.json").is_file():
            copy_into(run.folder, {str(_CONFIGURATION): found.folder / "config.json"})
        name = initialized_name(run)
        put_terms(run, found.folder)
        remember_export(run, found.folder, name)
        with run.changed_report() as report:
            report.notes = [*run.float_model.notes, *warnings]
            at_16 = 2 * sum(prod(tensor["shape"]) for tensor in tensors_of(run.model_path).values())
            report.baseline = {"bytes": size_of(Path(run.model_path)), "bytes_at_16": at_16}
            method = f"{run.width_title} {run.recipe.initialize.method}, streamed"
            place = str(target.relative_to(run.folder))
            variant = Variant(name, method, found.bits_per_weight, None, None, None, found.bytes, place)
            bits = {layer.name: found.bits_per_weight for layer in run.plan.layers}  # on average
            variant.bits_over_all = bits_over_all(run.plan, bits, stored_bits(run))
            variant.types = run.exported_types
            report.put(variant)
        put_card(run, found.folder, variant)
        write_page(run)
        if push_to_hub:
            push_last(run, push_to_hub)
    return found


def _left_out(recipe: Recipe) -> list[str]:
    """What ``recipe`` asks for and a streamed run does not do, a sentence each."""
    found, (format, *further), limits = [], recipe.exports, recipe.evaluate
    if further:
        found.append(
            f"Of export only {format} was written, not {' and '.join(further)}: a streamed run writes the first alone."
        )
    if any(
        limit is not None
        for limit in (limits.accept_kl, limits.accept_perplexity_ratio, limits.accept_task_drop, limits.accept_cosine)
    ):
        found.append("The limits of evaluate.accept were not looked at, since a streamed run measures nothing.")
    if recipe.engine:
        found.append(f"{recipe.engine} was not asked, since a streamed run keeps no model to compare it with.")
    return found


def is_streamed(folder: Path) -> bool:
    """Whether the run in ``folder`` was streamed."""
    return (folder / _DIGESTS).is_file()


@torch.no_grad()
def verify_streamed(run: Path, folder: Path) -> Verification:
    """Compare the checkpoint in ``folder``, file by file, with what the streamed run in ``run`` rounded.

    Raises:
        UserError: A file is damaged.
    """
    expected = read_json(run / _DIGESTS, "What a streamed run keeps of its tensors")
    layers, differing, seen = 0, {}, set()
    for name, tensor, is_layer in _tensors_in(folder, list(expected)):
        layers += is_layer
        seen.add(name)
        if name in expected and digest(tensor).hex() != expected[name]:
            differing[name.removesuffix(".weight")] = tensor.numel()
    missing, unexpected = sorted(expected.keys() - seen), sorted(seen - expected.keys())
    notes = ["a tensor that differs counts as a whole, since a streamed run keeps no more than a sum of each"]
    settings = _differing_settings(run / _CONFIGURATION, folder / "config.json")
    return Verification(layers, differing, missing, unexpected, notes=notes if differing else [], settings=settings)


def _differing_settings(written: Path, there: Path) -> list[str]:
    """The keys of a configuration that are no more as they were written."""
    if not written.is_file() or not there.is_file():
        return []
    wanted, found = (read_json(file, "The configuration of a checkpoint") for file in (written, there))
    return sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))


def _tensors_in(folder: Path, names: list[str]) -> Iterator[tuple[str, Tensor, bool]]:
    """Of a checkpoint, file by file: the name of each tensor, its numbers, and whether it is a quantized weight."""
    format = format_of(folder)
    if format == "gguf":
        with needs("hf", "A GGUF file"):
            from torchqat.checkpoints.readers.gguf import GgufFile, gguf_files, tensors_of_model

        yield from tensors_of_model(GgufFile(gguf_files(folder)), names)
        return
    config = read_json(folder / "config.json", "The configuration of a checkpoint")["quantization_config"]
    for file in sorted(folder.glob("*.safetensors")):
        reading = read_layers_of(format, read_file(file), config)
        yield from ((f"{name}.weight", weight, True) for name, weight in reading.weights.items())
        yield from ((name, tensor, False) for name, tensor in reading.others.items())
