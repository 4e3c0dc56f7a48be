"""The ways to quantize a model that mode auto knows, and the model of each, made or read from what its folder keeps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import Initialize, Plan, float8_plan, parse_recipe, with_types
from torchqat.checkpoints.export import check_exports
from torchqat.errors import UserError
from torchqat.evaluation.mixed_widths import mixed_widths
from torchqat.evaluation.number_types import Width, compared_widths, own_width, title_of, width_of, word_of
from torchqat.evaluation.sensitivity import LayerSensitivity
from torchqat.files import read_json, write_json
from torchqat.runs.coverage import budget_of_layers
from torchqat.runs.export_dtype import scales_of_integers, stored_bits
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.identity import apply, meaning, plan_content, with_method
from torchqat.runs.run import Run
from torchqat.runs.steps import measure_sensitivity
from torchqat.runs.trained import trained_state
from torchqat.training.state import load_training
from torchqat.verification.engines import ENGINES, check_engine

# Layers that are backed off go to one of these: where inputs are in blocks, to a type that has them, too.
_WIDE, _WIDE_IN_BLOCKS = 8, "mxfp8_e4m3"
# Tried beside the recipe's own 4 bits where the engine that is named runs them.
_FLOAT4 = ("nvfp4", "mxfp4")
# How the recipe's own number types are rounded without training, the cheapest to try first.
_ROUNDINGS = ("gptq", "awq")
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


def runs_float4(engine: str, device: torch.device) -> bool:
    """Whether an engine is named, and runs weights in NVFP4 and MXFP4 on such a device."""
    return engine in ENGINES and device.type in ENGINES[engine].float4_devices


class Candidates:
    """The ways to quantize a run's model, cheapest to try first; models are built when they are asked for."""

    def __init__(self, run: Run):
        self.run = run
        specs = [layer.weight for layer in run.plan.layers]
        if any(spec is None for spec in specs):
            raise UserError("In mode auto, every planned layer must have a quantized weight, but one has not.")
        self.are_integers = all(spec.takes_widths for spec in specs)
        self.bits = max(spec.bits for spec in specs)
        in_blocks = any(layer.input and layer.input.type_name != layer.input.dtype for layer in run.plan.layers)
        self.wide: Width = _WIDE_IN_BLOCKS if in_blocks else _WIDE
        self._last: tuple[str, nn.Module] | None = None

    @property
    def widths(self) -> list[Width]:
        """What layers are measured at, alone: as they are planned, and backed off."""
        own = [self.bits] if self.are_integers else compared_widths(self.run.plan)
        return list(dict.fromkeys([*own, self.wide]))

    @property
    def own(self) -> str:
        """The plan's number types as a word: ``int4``, ``nvfp4``."""
        return word_of(self.bits) if self.are_integers else self.run.width_names

    def all(self) -> list[Candidate]:
        """Those that the limits, the hardware and the engine of today ask for."""
        own, title = self.own, self.own.upper()
        found = [Candidate("int8", "INT8", "mse", self._all(_WIDE))] if self._takes(_WIDE) else []
        if runs_float8(self.run.device) and self._served(float8_plan(self.run.plan)):
            found.append(Candidate("fp8", "FP8", "rtn", lambda: float8_plan(self.run.plan)))
        if self.are_integers and self.bits >= _WIDE:
            return found
        for rounding in _ROUNDINGS:
            found.append(Candidate(f"{own}-{rounding}", f"{title} {rounding.upper()}", rounding, self._own))
        for other in self._float4:
            found.append(Candidate(f"{other}-gptq", f"{title_of(other)} GPTQ", "gptq", self._all(other)))
        trains = self.run.recipe.train.steps > 0
        if trains:
            found.append(Candidate(f"{own}-qat", f"{title} QAT", "", self._own))
        last = "" if trains else _ROUNDINGS[0]
        for budget in self._budgets():
            mix = f"{title} and {title_of(self.wide)}, {budget:.2f} bits a weight"
            name = f"{own}-{word_of(self.wide)}-{budget:.5g}"
            found.append(Candidate(name, f"{mix}, {(last or 'qat').upper()}", last, partial(self._mixed, budget)))
        return found

    @cached_property
    def _float4(self) -> list[str]:
        """The types of 4-bit floats that the engine that is named runs and a format that it loads holds."""
        run = self.run
        if self.bits > 4 or not runs_float4(run.recipe.engine, run.device):
            return []
        if any(layer.input for layer in run.plan.layers):  # which would have to be given up
            return []
        loaded = [name for name in run.recipe.exports if name in ENGINES[run.recipe.engine].formats]
        return [name for name in _FLOAT4 if name != self.own and self._takes(name) and self._held(name, loaded)]

    def _held(self, width: Width, formats: list[str]) -> bool:
        run, plan = self.run, self._all(width)()
        for format in formats:
            try:
                check_exports(run.float_model.outline, plan, [format], run.kind.writes_text, pooling=run.kind.pooling)
                return True
            except UserError:
                continue
        return False

    def _takes(self, width: Width) -> bool:
        """Whether every layer can be of that width, and the engine that is named runs it."""
        try:
            plan = self._all(width)()
        except ValueError:
            return False
        return self._served(plan)

    def _served(self, plan: Plan) -> bool:
        try:
            check_engine(self.run.recipe.engine, self.run.float_model.outline, plan.layers, plan.kv_cache)
        except UserError:
            return False
        return True

    def _all(self, width: Width) -> Callable[[], Plan]:
        word = word_of(width)
        return lambda: self._typed({layer.name: word for layer in self.run.plan.layers})

    def _typed(self, types: dict[str, str]) -> Plan:
        return with_types(self.run.plan, types, scales_of_integers(self.run.recipe.exports[:1]))

    def model(self, name: str) -> nn.Module:
        """The model of the candidate called ``name``, one of today's or one that was tried before.

        Raises:
            UserError: There is none.
        """
        if self._last is None or self._last[0] != name:
            plan, rounding = self._tried(name) or self._asked(name)
            kept = self._folder(name) / "initialized.pt"
            model = self.run.prepared(plan, self._settings(rounding), kept) if rounding else self._trained(name, plan)
            self._last = (name, model)
        return self._last[1]

    def _settings(self, rounding: str) -> Initialize:
        """What the recipe says of ``initialize``, but for the method, where it is one that data decide."""
        own = self.run.recipe.initialize
        return with_method(own, rounding) if rounding in _ROUNDINGS else Initialize(rounding)

    def _asked(self, name: str) -> tuple[Plan, str]:
        """Plan and rounding of one of today's, which its folder remembers from now on."""
        candidate = next((one for one in self.all() if one.name == name), None)
        if candidate is None:
            raise UserError(f"{self.run.folder} must have tried {name}, but has no such candidate.")
        plan = candidate.plan()
        types = None if name == "fp8" else types_of(plan)
        write_json(self._folder(name) / _MADE, {"rounding": candidate.rounding, "types": types})
        return plan, candidate.rounding

    def _tried(self, name: str) -> tuple[Plan, str] | None:
        """The same of one as it was when it was tried, whatever has changed since."""
        path, own = self._folder(name) / _MADE, self.run.plan
        if not path.is_file():
            return None
        made = read_json(path, "What a candidate was made of")
        types, rounding = made.get("types"), made["rounding"]
        if widths := made.get("widths"):  # as version 0.1 wrote them
            types = {layer: word_of(bits) for layer, bits in widths.items()}
        if types is None:
            return float8_plan(own), rounding
        return own if types == types_of(own) else self._typed(types), rounding

    def _own(self) -> Plan:
        return self.run.plan

    def _folder(self, name: str) -> Path:
        return self.run.folder / "candidates" / name

    def _trained(self, name: str, plan: Plan) -> nn.Module:
        parent = self.run
        recipe = parse_recipe(parent.recipe.text, parent.recipe.file)
        apply(recipe, parent.made_of["recipe"])  # what was set by options, or in Python
        recipe.model, recipe.data = parent.recipe.model, parent.recipe.data
        if not recipe.initialize.needs_data:
            recipe.initialize = with_method(recipe.initialize, _ROUNDINGS[0])
        kept = {**parent.made_of, "recipe": meaning(recipe), "plan": plan_content(plan)}
        child = Run(recipe, self._folder(name), parent.progress, parent.float_model, parent, plan, kept)
        state = load_training(child.folder / "checkpoints" / "train.pt")
        if state is not None and (state.facts["identity"], state.facts["step"]) == (child.identity, recipe.train.steps):
            return trained_state(child)
        return fine_tune(child)

    def _budgets(self) -> list[float]:
        """Half of the room up to the size that is allowed, and all of it; none where no layer can be backed off."""
        if not self._takes(self.wide):
            return []
        least = bits_of(self.run.plan, **self._stored)
        most = budget_of_layers(self.run.plan, self.run.recipe.size_bits_per_weight, stored_bits(self.run))
        return [least + share * (most - least) for share in (0.5, 1.0)] if most > least else []

    def _mixed(self, budget: float) -> Plan:
        """The plan with the most sensitive layers at 8 bits, as many as the budget allows."""
        widths = mixed_widths(self._sensitivity, budget)
        return self._typed({layer: word_of(width) for layer, width in widths.items()})

    @cached_property
    def _sensitivity(self) -> list[LayerSensitivity]:
        kept = self.run.report().sensitivity  # measured before this run was interrupted
        if kept:
            return _layers_of(self.run.plan, kept, **self._stored)
        return [replace(layer, **self._stored) for layer in measure_sensitivity(self.run, self.widths)]

    @property
    def _stored(self) -> dict[str, Any]:
        """What of the recipe's first format, which is the one measured, decides the size of a layer."""
        return {"scale_bits": stored_bits(self.run), "format": self.run.recipe.exports[0]}


def types_of(plan: Plan) -> dict[str, str]:
    """The number type of each layer's weight, as recipes name it."""
    return {layer.name: layer.weight.type_name for layer in plan.layers}


def bits_of(plan: Plan, scale_bits: int, format: str = "") -> float:
    """What a weight takes on average, scales and zero points included."""
    layers = _layers_of(plan, {}, scale_bits, format)
    return sum(layer.size(own_width(layer.spec)) for layer in layers) / sum(layer.elements for layer in layers)


def _layers_of(plan: Plan, kept: dict[str, dict[str, float]], scale_bits: int, format: str) -> list[LayerSensitivity]:
    """The layers of ``plan`` with what a report keeps of their sensitivity, by the width as a word."""
    return [
        LayerSensitivity(
            layer.name,
            layer.weight,
            {width_of(word): kl for word, kl in kept.get(layer.name, {}).items()},
            (layer.matrices * layer.out_features, layer.in_features),
            scale_bits,
            layer.input,
            format,
        )
        for layer in plan.layers
    ]
