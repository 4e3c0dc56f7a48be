"""The ways to quantize a model that mode auto knows, and the model of each, made or read from what its folder keeps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from torchqat._library import Initialize, Plan, float8_plan, parse_recipe, with_widths
from torchqat.errors import UserError
from torchqat.evaluation.mixed_widths import mixed_widths
from torchqat.evaluation.sensitivity import LayerSensitivity
from torchqat.files import read_json, write_json
from torchqat.runs.coverage import budget_of_layers
from torchqat.runs.export_dtype import stored_bits
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.identity import apply, meaning, plan_content
from torchqat.runs.run import Run
from torchqat.runs.steps import measure_sensitivity
from torchqat.runs.trained import trained_state
from torchqat.training.state import load_training

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


def runs_float8(device: torch.device) -> bool:
    """Whether ``device`` is a GPU that multiplies FP8 (compute capability 8.9 and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


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
        if runs_float8(self.run.device):
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
            plan, rounding = self._tried(name) or self._asked(name)
            kept = self._folder(name) / "initialized.pt"
            model = self.run.prepared(plan, Initialize(rounding), kept) if rounding else self._trained(name, plan)
            self._last = (name, model)
        return self._last[1]

    def _asked(self, name: str) -> tuple[Plan, str]:
        """Plan and rounding of one of today's, which its folder remembers from now on."""
        candidate = next((one for one in self.all() if one.name == name), None)
        if candidate is None:
            raise UserError(f"{self.run.folder} must have tried {name}, but has no such candidate.")
        plan = candidate.plan()
        is_float = plan.layers[0].weight.is_float
        widths = None if is_float else {layer.name: layer.weight.bits for layer in plan.layers}
        write_json(self._folder(name) / _MADE, {"rounding": candidate.rounding, "widths": widths})
        return plan, candidate.rounding

    def _tried(self, name: str) -> tuple[Plan, str] | None:
        """The same of one as it was when it was tried, whatever has changed since."""
        path, own = self._folder(name) / _MADE, self.run.plan
        if not path.is_file():
            return None
        made = read_json(path, "What a candidate was made of")
        widths, rounding = made["widths"], made["rounding"]
        if widths is None:
            return float8_plan(own), rounding
        is_own = widths == {layer.name: layer.weight.bits for layer in own.layers}
        return own if is_own else with_widths(own, widths), rounding

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
        least = bits_of(self.run.plan, self._scale_bits)
        most = budget_of_layers(self.run.plan, self.run.recipe.size_bits_per_weight, self._scale_bits)
        return [least + share * (most - least) for share in (0.5, 1.0)] if most > least else []

    def _mixed(self, budget: float) -> Plan:
        """The plan with the most sensitive layers at 8 bits, as many as the budget allows."""
        return with_widths(self.run.plan, mixed_widths(self._sensitivity, budget))

    @cached_property
    def _sensitivity(self) -> list[LayerSensitivity]:
        kept = self.run.report().sensitivity  # measured before this run was interrupted
        if kept:
            return _layers_of(self.run.plan, self._scale_bits, kept)
        return [replace(layer, scale_bits=self._scale_bits) for layer in measure_sensitivity(self.run, self.width)]

    @property
    def _scale_bits(self) -> int:
        """Of the dtype that the recipe's first format stores scales, and what stays in floating point, in."""
        return stored_bits(self.run)


def bits_of(plan: Plan, scale_bits: int) -> float:
    """What a weight takes on average, scales and zero points included."""
    layers = _layers_of(plan, scale_bits, {})
    return sum(layer.size(layer.spec.bits) for layer in layers) / sum(layer.elements for layer in layers)


def _layers_of(plan: Plan, scale_bits: int, kept: dict[str, dict[str, float]]) -> list[LayerSensitivity]:
    """The layers of ``plan`` with what a report keeps of their sensitivity, by the width as a word."""
    return [
        LayerSensitivity(
            layer.name,
            layer.weight,
            {int(bits): kl for bits, kl in kept.get(layer.name, {}).items()},
            (layer.matrices * layer.out_features, layer.in_features),
            scale_bits,
        )
        for layer in plan.layers
    ]
