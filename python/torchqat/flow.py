"""``torchqat run``: the whole flow, stage by stage, each kept so that an interrupted run goes on where it was."""

from pathlib import Path

from torch import nn

from torchqat._library import Recipe, naive_plan
from torchqat.convert import convert
from torchqat.errors import UserError
from torchqat.evaluate import evaluate
from torchqat.export import checked_format, export
from torchqat.files import size_of
from torchqat.fine_tune import fine_tune
from torchqat.formats.tensors import checkpoint_plan, float_tensors
from torchqat.losses import cross_entropy
from torchqat.progress import Progress
from torchqat.report import Report, Variant, recovered
from torchqat.run import Run
from torchqat.training import TrainingLoop
from torchqat.verify import verify


def run(recipe: Recipe, folder: Path, progress: Progress, resume: bool = False) -> Report:
    """Baseline, naive rounding, training, export and verification; returns the report."""
    job = Run(recipe, folder, progress)
    job.open(resume)
    _baseline(job)
    for bits in recipe.evaluate.compare:
        _naive(job, bits)
    _initialized(job)
    if recipe.train.control:
        _control(job)
    _trained(job)
    return job.load_report()


def _baseline(job: Run) -> None:
    report = job.load_report()
    if report.baseline:
        return
    job.progress.say("Measuring the full-precision baseline")
    figures = evaluate(job.original, job.data.evaluation)
    size = sum(t.numel() * t.element_size() for _, t in float_tensors(job.original))
    report.baseline = {"perplexity": figures.perplexity, "bytes": size, "tokens": figures.tokens}
    job.save_report(report)


def _naive(job: Run, bits: int) -> None:
    """Round to nearest at ``bits``, without training, and export it."""
    name = f"int{bits}-naive"
    report = job.load_report()
    if report.variant(name):
        return
    job.progress.say(f"Rounding to int{bits} without training")
    model = job.prepared(naive_plan(job.plan, bits), "rtn")
    report.put(_variant(job, name, f"INT{bits} round to nearest", model, f"-{name}"))
    job.save_report(report)


def _initialized(job: Run) -> None:
    """What post-training quantization alone gives, exported."""
    report = job.load_report()
    name = f"{job.width_names}-{job.recipe.initialize.method}".replace("+", "-")
    if report.variant(name) or not (job.recipe.initialize.needs_data or job.recipe.train.steps == 0):
        return
    model = job.prepared(job.plan)
    method = f"{job.width_names.upper().replace('-', '/')} {job.recipe.initialize.method}"
    variant = _variant(job, name, method, model, f"-{name}")
    if job.recipe.train.steps == 0:
        _export_others(job, model, f"-{name}")
    report = job.load_report()
    report.put(variant)
    if job.recipe.train.steps == 0:
        report.accepted = _accepted(job, report, variant)
    job.save_report(report)


def _control(job: Run) -> None:
    """The float model fine-tuned for the same steps on the same batches with cross-entropy."""
    report = job.load_report()
    if report.variant("float-control"):
        return
    model = job.fresh_model()
    loop = TrainingLoop(
        model,
        lambda tokens: cross_entropy(model(input_ids=tokens, use_cache=False).logits, tokens),
        job.data.train,
        job.recipe.train,
        checkpoint=job.folder / "checkpoints" / "control.pt",
        identity=job.identity,
        on_step=job.progress.steps("Fine-tuning the float control", job.recipe.train.steps),
    )
    figures = job.measure(loop.run())
    size = int(report.baseline["bytes"])
    bits = 8.0 * next(model.parameters()).element_size()
    report.put(Variant.of("float-control", "full precision, fine-tuned as long", bits, figures, size))
    job.save_report(report)


def _trained(job: Run) -> None:
    """Train, export, verify and measure."""
    report = job.load_report()
    bits = job.exported_widths
    name = job.width_names + "-qat"
    if report.variant(name) or job.recipe.train.steps == 0:
        return
    model = fine_tune(job)
    report = job.load_report()
    variant = _variant(job, name, f"{'/'.join(f'INT{b}' for b in bits)} QAT", model, "")
    _export_others(job, model, "")
    naive = report.variant(f"int{bits[0]}-naive") if len(bits) == 1 else None
    if naive:
        variant.recovered = recovered(report.baseline["perplexity"], naive, variant)
    report.accepted = _accepted(job, report, variant)
    report.put(variant)
    job.save_report(report)


def _variant(job: Run, name: str, method: str, model: nn.Module, suffix: str) -> Variant:
    """Export ``model`` in the recipe's first format, read it back, and measure it."""
    target = _export(job, model, _format_for(job, model), suffix)
    folder = job.folder / target
    weights = convert(model)
    elements = sum(w.codes.numel() for w in weights)
    bits = sum(w.bits_per_weight * w.codes.numel() for w in weights) / elements
    return Variant.of(name, method, bits, job.measure(model), size_of(folder), target)


def _export(job: Run, model: nn.Module, format: str, suffix: str) -> str:
    """Write ``model``, and read it back; returns the folder, relative to the run."""
    target = f"exports/{format}{suffix}"
    folder = export(model, job.folder / target, format, job.tokenizer)
    checked = verify(folder, model)
    if not checked.ok:
        raise UserError(f"{folder} does not read back as it was trained: {checked}.")
    job.progress.say(f"{folder}: {checked}")
    return target


def _export_others(job: Run, model: nn.Module, suffix: str) -> None:
    for format in job.recipe.exports[1:]:
        _export(job, model, format, suffix)


def _format_for(job: Run, model: nn.Module) -> str:
    """The recipe's first format; for comparisons at other widths that it cannot hold, the one that holds most."""
    try:
        return checked_format(job.recipe.exports[0], checkpoint_plan(model)).name
    except UserError:
        return "compressed-tensors"


def _accepted(job: Run, report: Report, variant: Variant) -> bool | None:
    limits = job.recipe.evaluate
    checks = []
    if limits.accept_kl is not None:
        checks.append(variant.kl <= limits.accept_kl)
    if limits.accept_perplexity_ratio is not None:
        checks.append(variant.perplexity <= limits.accept_perplexity_ratio * report.baseline["perplexity"])
    return all(checks) if checks else None
