"""Steps that a flow is made of: the baseline measured, a model exported, read back, measured and compared."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat.checkpoints.convert import QuantizedWeights, convert
from torchqat.checkpoints.export import export, format_for
from torchqat.checkpoints.formats.known import bits_per_weight
from torchqat.checkpoints.formats.tensors import cache_note as formats_note
from torchqat.checkpoints.formats.tensors import checkpoint_plan, float_tensors
from torchqat.data.batch import Batch
from torchqat.errors import UserError
from torchqat.evaluation.bootstrap import bootstrap
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.evaluation.histograms import histograms
from torchqat.evaluation.number_types import Width
from torchqat.evaluation.sensitivity import LayerSensitivity, sensitivity
from torchqat.files import digest_of, size_of
from torchqat.model.experts import matrix_of
from torchqat.reports.report import Limit, Report, Variant
from torchqat.runs.cache_note import cache_note
from torchqat.runs.cards import put_card, put_terms, types_of
from torchqat.runs.coverage import bits_over_all
from torchqat.runs.export_dtype import dtype_note, export_dtype, stored_bits
from torchqat.runs.run import Run
from torchqat.verification.result import Verification
from torchqat.verification.verify import verify


def measure_baseline(run: Run) -> None:
    """Measure the float model, once, and put it into the report.

    Raises:
        UserError: A limit is on its perplexity, and it has none.
    """
    if run.report().baseline:
        return
    run.progress.say("Measuring the full-precision baseline")
    figures = evaluate(run.original, run.data.evaluation, kind=run.kind, device=run.device)
    if figures.perplexity is None and run.recipe.evaluate.accept_perplexity_ratio is not None:
        raise UserError(
            f"evaluate.accept.perplexity_ratio must not be given for {run.model_path}, which gives one number and has no "
            "perplexity."
        )
    own = run.float_model.dtype or torch.float64
    tensors = [tensor for _, tensor in float_tensors(run.original)]
    size = sum(t.numel() * min(t.element_size(), own.itemsize) for t in tensors)
    found = {
        "perplexity": figures.perplexity,
        "bytes": size,
        "bytes_at_16": sum(t.numel() * min(t.element_size(), 2) for t in tensors),
        "tokens": figures.tokens,
        "losses": figures.losses,
        "counted": run.data.counted,
    }
    if run.task is not None:
        scores = run.scores(run.original)
        found.update(task=sum(scores) / len(scores), task_scores=scores)
    with run.changed_report() as report:
        report.baseline, report.notes = found, [*run.float_model.notes]


def make_variant(run: Run, name: str, method: str, model: nn.Module, suffix: str) -> Variant:
    """Export ``model`` in the recipe's first format, read it back, and measure it."""
    format = fitting_format(run, model)
    target = export_and_verify(run, model, format, name, suffix)
    folder = run.folder / target
    weights = convert(model, export_dtype(run, model, format))
    elements = sum(w.codes.numel() for w in weights)
    widths = {w.name: bits_per_weight(format, w) for w in weights}
    bits = sum(widths[w.name] * w.codes.numel() for w in weights) / elements
    figures = run.measure(model)
    variant = Variant.of(name, method, bits, figures, size_of(folder), target)
    variant.bits_over_all = bits_over_all(run.plan, widths, stored_bits(run))
    if not model.qat_initialize.transforms:  # scaled or rotated channels have nothing to be compared with
        variant.histograms = histograms(model, run.original)
        variant.sqnr = _signal_to_noise(run, weights)
    _compare(run, model, figures, variant)
    variant.types = types_of(model)
    put_card(run, folder, variant)
    return variant


def _signal_to_noise(run: Run, weights: list[QuantizedWeights]) -> dict[str, float]:
    """10 log10 of the energy of each float weight over that of its error, in dB."""
    found = {}
    for layer in weights:
        before = matrix_of(run.original, layer.name).detach().double()
        noise = (layer.dequantize(torch.float32).double() - before).square().sum()
        found[layer.name] = (10 * (before.square().sum() / noise.clamp(min=1e-300)).log10()).item()
    return found


def _compare(run: Run, model: nn.Module, figures: Evaluation, variant: Variant) -> None:
    """Differences from the baseline, sequence by sequence and example by example, with their intervals."""
    baseline = run.report().baseline
    found = {}
    if len(figures.kls) > 1:  # of one alone nothing is known of its noise
        found["kl"] = bootstrap(figures.kls)
    if len(figures.losses) > 1:
        pairs = zip(figures.losses, baseline["losses"], strict=True)
        found["perplexity_ratio"] = bootstrap([a - b for a, b in pairs], torch.exp)
    if run.task is not None:
        scores = run.scores(model)
        if len(scores) != len(baseline["task_scores"]):
            raise UserError(f"{run.task.name} must score the same examples every time, but scored {len(scores)}.")
        variant.task = sum(scores) / len(scores)
        found["task_drop"] = bootstrap([b - a for a, b in zip(scores, baseline["task_scores"], strict=True)])
    variant.intervals = {name: [interval.value, interval.low, interval.high] for name, interval in found.items()}


def export_and_verify(run: Run, model: nn.Module, format: str, variant: str, suffix: str) -> str:
    """Write ``model``, that of ``variant``, and read it back; returns the folder, relative to the run."""
    target = f"exports/{format}{suffix}"
    folder = write_export(run, model, run.folder / target, format)
    checked = verify(folder, model, example=_example(run), device=run.device)
    if new := [note for note in run.float_model.notes if note not in run.report().notes]:  # of what could not be tried
        with run.changed_report() as report:
            report.notes += new
    if not checked.ok:
        raise UserError(f"{folder} does not read back as it was trained: {checked}.")
    run.progress.say(f"{folder}: {checked}; sha256 {remember_export(run, folder, variant)}")
    return target


def remember_export(run: Run, folder: Path, variant: str) -> str:
    """Note of which variant the checkpoint in ``folder`` is; returns its SHA-256, by which it is known wherever it goes."""
    digest, place = digest_of(folder), folder.resolve()
    root = run.folder.resolve()
    with run.changed_report() as report:
        where = place.relative_to(root) if place.is_relative_to(root) else place
        report.exports[str(where)] = {"variant": variant, "sha256": digest}
    return digest


def write_export(run: Run, model: nn.Module, folder: Path, format: str, **options: Any) -> Path:
    """``export`` with what the run knows of its model: tokenizer, inputs, dtype, and files that go with it."""
    known = {"example": run.kind.examples(run.example), "files": run.kind.companions(run.model_path)}
    known["pooling"] = run.kind.pooling
    dtype, notes = options.pop("dtype", None), []
    if dtype is None:
        dtype = export_dtype(run, model, format)
        notes.append(dtype_note(run, model, format, dtype))
    said: list[str] = []
    written = export(model, folder, format, run.tokenizer, dtype=dtype, say=said.append, **known, **options)
    put_terms(run, written)
    notes += [note for note in said if note != formats_note(run.plan.kv_cache, format)]  # a run has its own
    keep_notes(run, [*notes, later_cache_note(run, format)])
    return written


def later_cache_note(run: Run, format: str) -> str:
    """Of formats that the run did not speak of when it began."""
    return "" if format in run.recipe.exports else cache_note(run.plan.kv_cache, format, run.recipe.engine)


def keep_notes(run: Run, notes: list[str]) -> None:
    """Say each that is not empty, once, and put it into the report."""
    for note in filter(None, notes):
        run.float_model.note(note)
        with run.changed_report() as report:
            report.notes += [] if note in report.notes else [note]


def verify_in_engine(run: Run, folder: Path, model: nn.Module, engine: str, bench: bool) -> Verification:
    """``verify`` with what the run knows: beginnings of held-out text or a batch, and the float model to time beside it."""
    if not run.kind.writes_text:
        example = run.kind.examples(run.example)
        return verify(
            folder, model, engine=engine, bench=bench, example=example, original=run.original, device=run.device
        )
    prompts = run.kind.prompts(run.example)
    baseline = run.model_path if bench else ""
    known = {"tokenizer": run.tokenizer, "baseline": baseline, "example": _example(run), "device": run.device}
    return verify(folder, model, prompts, engine, bench, **known)


def _example(run: Run) -> Batch | None:
    """What transformers is asked beside text, or in place of it."""
    return run.float_model.with_image if run.kind.writes_text else run.kind.examples(run.example)


def export_others(run: Run, model: nn.Module, variant: Variant, suffix: str) -> None:
    """Write ``model`` in the recipe's formats after the first, and read each back."""
    for format in run.recipe.exports[1:]:
        target = export_and_verify(run, model, format, variant.name, suffix)
        put_card(run, run.folder / target, variant)


def fitting_format(run: Run, model: nn.Module) -> str:
    """The recipe's first format; for comparisons at other widths that it cannot hold, the one that holds most."""
    try:
        return format_for(model, checkpoint_plan(model), run.recipe.exports[0]).name
    except UserError:
        return "compressed-tensors"


def measure_sensitivity(run: Run, widths: list[Width]) -> list[LayerSensitivity]:
    """KL of each layer at ``widths``, on a few calibration batches; into the report as well."""
    run.progress.say("Measuring how sensitive each layer is")
    found = sensitivity(run.original, run.plan, run.data.calibration[:2], widths, run.kind, run.device)
    with run.changed_report() as report:
        report.sensitivity = {layer.name: {str(bits): kl for bits, kl in layer.kl.items()} for layer in found}
    return found


def limits_of(run: Run, report: Report, variant: Variant) -> list[Limit]:
    """What the recipe asks of ``variant``, and what that came to."""
    asked, found = run.recipe.evaluate, []
    if asked.accept_kl is not None:
        found.append(Limit("KL", variant.kl, asked.accept_kl))
    if asked.accept_perplexity_ratio is not None:
        bound = asked.accept_perplexity_ratio * report.baseline["perplexity"]
        found.append(Limit("Perplexity", variant.perplexity, bound))
    if asked.accept_cosine is not None:
        found.append(Limit("Cosine to the float model", variant.cosine, asked.accept_cosine, at_least=True))
    if asked.accept_task_drop is not None:
        found.append(Limit("Loss on the task", variant.intervals["task_drop"][0], asked.accept_task_drop))
    return found


def is_accepted(run: Run, report: Report, variant: Variant) -> bool | None:
    """Whether ``variant`` is what the recipe asks for; ``None`` if it asks for nothing."""
    found = limits_of(run, report, variant)
    return all(limit.met for limit in found) if found else None


def judge(run: Run, report: Report, variant: Variant) -> None:
    """Put into ``report`` whether ``variant``, which the run ends with, is what the recipe asks for."""
    report.limits, report.accepted = limits_of(run, report, variant), is_accepted(run, report, variant)
