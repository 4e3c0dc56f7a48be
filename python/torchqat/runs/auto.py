"""Mode auto: the least a model can be given while it stays good enough, found in the order of what it costs to try.

INT8, FP8 where there is hardware for it, the recipe's type by GPTQ and by AWQ (searched where its scales have two levels),
NVFP4 and MXFP4 where the engine that is named runs them, then the recipe's type trained, then with the most sensitive layers
back at 8 bits. The first that meets ``evaluate.accept`` and ``size`` is exported. What was measured is kept: a run that is
resumed, or whose limits changed, goes on from there.
"""

from torchqat.checkpoints.export import format_for
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.errors import UserError
from torchqat.reports.report import Limit, Report, Variant
from torchqat.runs.candidates import Candidate, Candidates
from torchqat.runs.cards import put_card
from torchqat.runs.coverage import size_of_variant
from torchqat.runs.in_engine import measured_in_engine
from torchqat.runs.run import Run
from torchqat.runs.samples import samples_of
from torchqat.runs.steps import (
    export_and_verify,
    is_accepted,
    judge,
    limits_of,
    make_variant,
    measure_baseline,
    measure_sensitivity,
)


def decide(run: Run) -> Report:
    """Try candidates until one meets the limits; export it and, where an engine is named, measure it there."""
    measure_baseline(run)
    candidates = Candidates(run)
    tried: list[Variant] = []
    for candidate in candidates.all():
        variant = _measured(run, candidates, candidate)
        tried.append(variant)
        if _meets(run, variant):
            break
    chosen = tried[-1] if _meets(run, tried[-1]) else _nearest(run, tried)
    reasons = _reasons(run, tried, chosen, candidates)
    with run.changed_report() as report:
        report.chosen = chosen.name
        judge(run, report, chosen)
        budget = run.recipe.size_bits_per_weight
        report.limits.append(Limit("Bits a weight over all", size_of_variant(chosen), budget))
        report.decision = reasons
    if run.recipe.evaluate.sensitivity and not report.sensitivity:
        measure_sensitivity(run, candidates.widths)
    _finish(run, candidates, chosen)
    return run.report()


def _measured(run: Run, candidates: Candidates, candidate: Candidate) -> Variant:
    """The candidate's variant, from the report where it was measured before."""
    found = run.report().variant(candidate.name)
    if found is not None:
        return found
    run.progress.say(f"Trying {candidate.method}")
    variant = make_variant(
        run, candidate.name, candidate.method, candidates.model(candidate.name), f"-{candidate.name}"
    )
    with run.changed_report() as report:
        report.put(variant)
    return variant


def _fits(run: Run, variant: Variant) -> bool:
    return size_of_variant(variant) <= run.recipe.size_bits_per_weight


def _meets(run: Run, variant: Variant) -> bool:
    return _fits(run, variant) and bool(is_accepted(run, run.report(), variant))


def _nearest(run: Run, tried: list[Variant]) -> Variant:
    """Where none meets the limits: of those that are small enough, the one that is nearest to the float model; of none, the
    smallest."""
    fitting = [variant for variant in tried if _fits(run, variant)]
    if fitting:
        return min(fitting, key=lambda variant: variant.kl)
    return min(tried, key=lambda variant: (size_of_variant(variant), variant.kl))


def _reasons(run: Run, tried: list[Variant], chosen: Variant, candidates: Candidates) -> list[str]:
    budget = run.recipe.size_bits_per_weight
    found = []
    for variant in tried:
        small = (
            "" if _fits(run, variant) else f"takes {size_of_variant(variant):.2f} bits a weight, more than {budget:g}"
        )
        missed = [limit for limit in limits_of(run, run.report(), variant) if not limit.met]
        figures = ", ".join(f"{limit.name} {limit.value:.5f}" for limit in missed)
        good = f"is past the limits ({figures})" if missed else ""
        why = " and ".join(word for word in (small, good) if word) or "meets the limits of quality and size"
        found.append(f"{variant.method} {why}.")
    names = [variant.name for variant in tried]
    left = [candidate.method for candidate in candidates.all() if candidate.name not in names]
    if left:
        found.append(f"Not tried, because they cost more: {'; '.join(left)}.")
    if _meets(run, chosen):
        verdict = ""
    elif _fits(run, chosen):
        verdict = ", the nearest to full precision of those small enough; none meets all limits"
    else:
        verdict = f", the smallest; none takes at most {budget:g} bits a weight"
    return [*found, f"Chosen: {chosen.method}{verdict}."]


def _finish(run: Run, candidates: Candidates, chosen: Variant) -> None:
    """Export the chosen one in every format that can hold it, and measure it in the engine."""
    model = candidates.model(chosen.name)
    held, notes = [], []
    for format in run.recipe.exports:
        try:
            held.append(format_for(model, checkpoint_plan(model), format).name)
        except UserError as error:
            notes.append(str(error))
    formats = held or ["compressed-tensors"]
    folders = {f: run.folder / export_and_verify(run, model, f, chosen.name, "") for f in formats}
    engine = measured_in_engine(run, model, folders)
    for folder in folders.values():
        put_card(run, folder, chosen)
    samples = samples_of(run, model, chosen)
    with run.changed_report() as report:
        report.notes += [note for note in notes if note not in report.notes]  # said by an earlier, resumed run
        report.engine, report.samples = engine, samples
