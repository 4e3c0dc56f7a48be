"""Mode auto: the least a model can be given while it stays good enough, found in the order of what it costs to try.

INT8, FP8 where there is hardware for it, the recipe's width by GPTQ and by AWQ, then trained, then with the most sensitive
layers back at 8 bits. The first that meets ``evaluate.accept`` and ``size`` is exported. What was measured is kept: a run
that is resumed, or whose limits changed, goes on from there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from torchqat._library import Initialize, Plan, find_format, float8_plan, parse_recipe, with_widths
from torchqat.checkpoints.export import checked_format
from torchqat.checkpoints.formats.tensors import checkpoint_plan
from torchqat.errors import UserError
from torchqat.evaluation.mixed_widths import mixed_widths
from torchqat.evaluation.sensitivity import LayerSensitivity
from torchqat.files import read_json, write_json
from torchqat.reports.report import Report, Variant
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.identity import apply, meaning, plan_content
from torchqat.runs.run import Run
from torchqat.runs.steps import (
    export_and_verify,
    is_accepted,
    make_variant,
    measure_baseline,
    measure_sensitivity,
    verify_in_engine,
)
from torchqat.runs.trained import trained_state
from torchqat.training.state import load_training
from torchqat.verification.engines import engine_formats

# Layers that are backed off go to this width.
_WIDE = 8
# In a candidate's folder: how it was made.
_MADE = "candidate.json"


@dataclass(frozen=True)
class Candidate:
    """One way to quantize the model.

    Attributes:
        name: Of its variant in the report, and of its folder.
        method: In a few words.
        rounding: How weights are rounded; empty where they are trained.
        plan: Gives what becomes of each layer.
    """

    name: str
    method: str
    rounding: str
    plan: Callable[[], Plan]


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
        report.chosen, report.accepted = chosen.name, is_accepted(run, report, chosen)
        report.decision = reasons
    if run.recipe.evaluate.sensitivity and not report.sensitivity:
        measure_sensitivity(run, candidates.width)
    _finish(run, candidates, chosen)
    return run.report()


def runs_float8() -> bool:
    """Whether there is a GPU that multiplies FP8 (compute capability 8.9 and later)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


class Candidates:
    """The ways to quantize a run's model, cheapest to try first; models are built when they are asked for."""

    def __init__(self, run: Run):
        self.run = run
        specs = [layer.weight for layer in run.plan.layers]
        if any(spec is None or not spec.takes_widths for spec in specs):
            raise UserError(
                "In mode auto, every planned layer must have an integer weight under scales of one level, but one has not."
            )
        self.width = max(spec.bits for spec in specs)
        self._last: tuple[str, nn.Module] | None = None

    def all(self) -> list[Candidate]:
        """Those that the limits and the hardware of today ask for."""
        width = f"int{self.width}"
        found = [Candidate("int8", "INT8", "mse", self._all_wide)]
        if runs_float8():
            found.append(Candidate("fp8", "FP8", "rtn", lambda: float8_plan(self.run.plan)))
        if self.width >= _WIDE:
            return found
        for rounding in ("gptq", "awq"):
            found.append(Candidate(f"{width}-{rounding}", f"{width.upper()} {rounding.upper()}", rounding, self._own))
        trains = self.run.recipe.train.steps > 0
        if trains:
            found.append(Candidate(f"{width}-qat", f"{width.upper()} QAT", "", self._own))
        for budget in self._budgets():
            method = f"{width.upper()} and INT{_WIDE}, {budget:.2f} bits a weight, {'QAT' if trains else 'GPTQ'}"
            name = f"{width}-int{_WIDE}-{budget:.5g}"
            found.append(Candidate(name, method, "" if trains else "gptq", partial(self._mixed, budget)))
        return found

    def model(self, name: str) -> nn.Module:
        """The model of the candidate called ``name``, one of today's or one that was tried before.

        Raises:
            UserError: There is none.
        """
        if self._last is None or self._last[0] != name:
            tried = self._tried(name)
            candidate = tried or next((one for one in self.all() if one.name == name), None)
            if candidate is None:
                raise UserError(f"{self.run.folder} must have tried {name}, but has no such candidate.")
            self._last = (name, self._built(candidate))
        return self._last[1]

    def _built(self, candidate: Candidate) -> nn.Module:
        plan = candidate.plan()
        is_float8 = bool(plan.layers) and plan.layers[0].weight.is_float
        widths = None if is_float8 else {layer.name: layer.weight.bits for layer in plan.layers}
        made = {"method": candidate.method, "rounding": candidate.rounding, "widths": widths}
        write_json(self._folder(candidate.name) / _MADE, made)
        if candidate.rounding:
            kept = self._folder(candidate.name) / "initialized.pt"
            return self.run.prepared(plan, Initialize(candidate.rounding), kept)
        return self._trained(candidate.name, plan)

    def _tried(self, name: str) -> Candidate | None:
        """As it was when it was tried, whatever has changed since."""
        path = self._folder(name) / _MADE
        if not path.is_file():
            return None
        made = read_json(path, "What a candidate was made of")
        widths = made["widths"]
        own = {layer.name: layer.weight.bits for layer in self.run.plan.layers}

        def plan() -> Plan:
            if widths is None:
                return float8_plan(self.run.plan)
            return self.run.plan if widths == own else with_widths(self.run.plan, widths)

        return Candidate(name, made["method"], made["rounding"], plan)

    def _own(self) -> Plan:
        return self.run.plan

    def _all_wide(self) -> Plan:
        return with_widths(self.run.plan, {layer.name: _WIDE for layer in self.run.plan.layers})

    def _folder(self, name: str) -> Path:
        return self.run.folder / "candidates" / name

    def _trained(self, name: str, plan: Plan) -> nn.Module:
        parent = self.run
        recipe = parse_recipe(parent.recipe.text, parent.recipe.file)
        apply(recipe, parent.made_of["recipe"])  # what was set by options, or in Python
        recipe.model, recipe.data = parent.recipe.model, parent.recipe.data
        if not recipe.initialize.needs_data:
            recipe.initialize = Initialize("gptq")
        kept = {**parent.made_of, "recipe": meaning(recipe), "plan": plan_content(plan)}
        child = Run(recipe, self._folder(name), parent.progress, parent.float_model, parent, plan, kept)
        state = load_training(child.folder / "checkpoints" / "train.pt")
        if state is not None and (state.facts["identity"], state.facts["step"]) == (child.identity, recipe.train.steps):
            return trained_state(child)
        return fine_tune(child)

    def _budgets(self) -> list[float]:
        """Half of the room up to the size that is allowed, and all of it."""
        least, most = bits_of(self.run.plan, self._scale_bits), self.run.recipe.size_bits_per_weight
        return [least + share * (most - least) for share in (0.5, 1.0)] if most > least else []

    def _mixed(self, budget: float) -> Plan:
        """The plan with the most sensitive layers at 8 bits, as many as the budget allows."""
        return with_widths(self.run.plan, mixed_widths(self._sensitivity, budget))

    @cached_property
    def _sensitivity(self):
        kept = self.run.report().sensitivity  # measured before this run was interrupted
        found = _sensitivity_of(self.run.plan, kept) if kept else measure_sensitivity(self.run, self.width)
        return [replace(layer, scale_bits=self._scale_bits) for layer in found]

    @property
    def _scale_bits(self) -> int:
        """Of the dtype that the recipe's first format stores scales in."""
        dtype = find_format(self.run.recipe.exports[0]).dtype or next(self.run.original.parameters()).dtype
        return 8 * dtype.itemsize


def _sensitivity_of(plan: Plan, kept: dict[str, dict[str, float]]) -> list[LayerSensitivity]:
    """What a report keeps of it, with what the plan knows."""
    return [
        LayerSensitivity(
            layer.name,
            layer.weight,
            {int(bits): kl for bits, kl in kept[layer.name].items()},
            (layer.out_features, layer.in_features),
        )
        for layer in plan.layers
    ]


def bits_of(plan: Plan, scale_bits: int) -> float:
    """What a weight takes on average, scales and zero points included."""
    sizes = elements = 0
    for layer in plan.layers:
        one = LayerSensitivity(layer.name, layer.weight, {}, (layer.out_features, layer.in_features), scale_bits)
        sizes += one.size(layer.weight.bits)
        elements += one.elements
    return sizes / elements


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
    return variant.bits_per_weight <= run.recipe.size_bits_per_weight


def _meets(run: Run, variant: Variant) -> bool:
    return _fits(run, variant) and bool(is_accepted(run, run.report(), variant))


def _nearest(run: Run, tried: list[Variant]) -> Variant:
    """Where none meets the limits: of those that are small enough, the one that is nearest to the float model."""
    fitting = [variant for variant in tried if _fits(run, variant)] or tried
    return min(fitting, key=lambda variant: variant.kl)


def _reasons(run: Run, tried: list[Variant], chosen: Variant, candidates: Candidates) -> list[str]:
    budget = run.recipe.size_bits_per_weight
    found = []
    for variant in tried:
        small = (
            "" if _fits(run, variant) else f"takes {variant.bits_per_weight:.2f} bits a weight, more than {budget:g}"
        )
        good = "" if is_accepted(run, run.report(), variant) else f"is past the limits (KL {variant.kl:.5f})"
        why = " and ".join(word for word in (small, good) if word) or "meets the limits of quality and size"
        found.append(f"{variant.method} {why}.")
    names = [variant.name for variant in tried]
    left = [candidate.method for candidate in candidates.all() if candidate.name not in names]
    if left:
        found.append(f"Not tried, because they cost more: {'; '.join(left)}.")
    verdict = (
        "" if _meets(run, chosen) else ", the nearest to full precision of those small enough; none meets all limits"
    )
    return [*found, f"Chosen: {chosen.method}{verdict}."]


def _finish(run: Run, candidates: Candidates, chosen: Variant) -> None:
    """Export the chosen one in every format that can hold it, and measure it in the engine."""
    model = candidates.model(chosen.name)
    held, notes = [], []
    for format in run.recipe.exports:
        try:
            held.append(checked_format(format, checkpoint_plan(model)).name)
        except UserError as error:
            notes.append(str(error))
    formats = held or ["compressed-tensors"]
    folders = {f: run.folder / export_and_verify(run, model, f, chosen.name, "") for f in formats}
    loaded = engine_formats(run.recipe.engine)
    served = next((folder for format, folder in folders.items() if format in loaded), None)
    engine = _in_engine(run, model, served or next(iter(folders.values()))) if run.recipe.engine else {}
    with run.changed_report() as report:
        report.notes += [note for note in notes if note not in report.notes]  # said by an earlier, resumed run
        report.engine = engine


def _in_engine(run: Run, model: nn.Module, folder: Path) -> dict:
    try:
        timed = run.kind.writes_text or run.recipe.engine == "onnxruntime"  # transformers answers others alone
        checked = verify_in_engine(run, folder, model, run.recipe.engine, timed)
    except UserError as error:
        run.progress.say(f"Note: {error}")
        return {"name": run.recipe.engine, "note": str(error)}
    run.progress.say(f"{folder}: {checked}")
    speeds = {"export": checked.speed, "float": checked.baseline}
    return {"name": run.recipe.engine, "ok": checked.ok, **{n: vars(s) for n, s in speeds.items() if s is not None}}
