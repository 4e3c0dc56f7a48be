"""``torchqat run``: the whole flow, stage by stage, each kept so that an interrupted run goes on where it was."""

from pathlib import Path

from torchqat._library import DistillSection, Recipe, naive_plan
from torchqat.reports.report import Report, Variant, recovered
from torchqat.runs.auto import decide
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.runs.steps import export_others, is_accepted, make_variant, measure_baseline, measure_sensitivity
from torchqat.training.loop import TrainingLoop


def run(recipe: Recipe, folder: Path, progress: Progress, resume: bool = False) -> Report:
    """Baseline, naive rounding, training, export, verification; in mode auto, what ``decide`` does. Returns the report."""
    job = Run(recipe, folder, progress)
    with job.opened(resume):
        return decide(job) if recipe.mode == "auto" else _follow(job)


def _follow(job: Run) -> Report:
    """What the recipe says, stage by stage."""
    recipe = job.recipe
    measure_baseline(job)
    for bits in recipe.evaluate.compare:
        _naive(job, bits)
    _initialized(job)
    if recipe.train.control:
        _control(job)
    _trained(job)
    if recipe.evaluate.sensitivity:
        _sensitivity(job)
    return job.load_report()


def _sensitivity(job: Run) -> None:
    weights = [layer.weight for layer in job.plan.layers if layer.weight]
    widths = [weight.bits for weight in weights if weight.takes_widths]
    if widths and not job.load_report().sensitivity:
        measure_sensitivity(job, min(widths))


def _naive(job: Run, bits: int) -> None:
    """Round to nearest at ``bits``, without training, and export it."""
    name = f"int{bits}-naive"
    report = job.load_report()
    if report.variant(name):
        return
    job.progress.say(f"Rounding to int{bits} without training")
    model = job.prepared(naive_plan(job.plan, bits), "rtn")
    others = sorted({layer.weight.dtype for layer in job.plan.layers if layer.weight and not layer.weight.takes_widths})
    method = " and ".join([f"INT{bits}", *(name.upper() for name in others)]) + " round to nearest"
    report.put(make_variant(job, name, method, model, f"-{name}"))
    job.save_report(report)


def _initialized(job: Run) -> None:
    """What post-training quantization alone gives, exported."""
    report = job.load_report()
    name = f"{job.width_names}-{job.recipe.initialize.method}".replace("+", "-")
    if report.variant(name) or not (job.recipe.initialize.needs_data or job.recipe.train.steps == 0):
        return
    model = job.prepared(job.plan)
    method = f"{job.width_names.upper().replace('-', '/')} {job.recipe.initialize.method}"
    variant = make_variant(job, name, method, model, f"-{name}")
    if job.recipe.train.steps == 0:
        export_others(job, model, f"-{name}")
    report = job.load_report()
    report.put(variant)
    if job.recipe.train.steps == 0:
        report.accepted = is_accepted(job, report, variant)
    job.save_report(report)


def _control(job: Run) -> None:
    """The float model fine-tuned for the same steps on the same batches with cross-entropy."""
    report = job.load_report()
    if report.variant("float-control"):
        return
    model = job.fresh_model()
    plain = DistillSection()
    plain.loss = "cross_entropy"
    loop = TrainingLoop(
        model,
        lambda batch: job.kind.loss(plain, job.kind.outputs(model, batch), None, batch),
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
    if job.recipe.train.steps == 0:
        return
    done = report.variant(name)
    if done is not None:  # but the limits may have changed since
        report.accepted = is_accepted(job, report, done)
        job.save_report(report)
        return
    model = fine_tune(job)
    report = job.load_report()
    variant = make_variant(job, name, f"{'/'.join(f'INT{b}' for b in bits)} QAT", model, "")
    export_others(job, model, "")
    naive = report.variant(f"int{bits[0]}-naive") if len(bits) == 1 else None
    if naive:
        variant.recovered = recovered(report.baseline["perplexity"], naive, variant)
    report.accepted = is_accepted(job, report, variant)
    report.put(variant)
    job.save_report(report)
