"""A recipe at work in a folder: what it works on, and what it keeps. ``flow.py`` has the steps."""

import copy
import math
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchqat._library import Initialize, Plan, Recipe, fusion_warning
from torchqat.checkpoints.formats.tensors import cache_spec, checkpoint_plan
from torchqat.data.batch import Batch, to_device
from torchqat.data.batches import Data, shortfall
from torchqat.data.corpus import Corpus
from torchqat.data.tasks import Task, load_task
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.files import load_state, save_state
from torchqat.kinds import Kind
from torchqat.model.calls import check_called
from torchqat.model.noted import note_calibration
from torchqat.model.placement import on_device
from torchqat.model.prepare import make_plan, prepare
from torchqat.model.vocabulary import check_positions, check_tokens
from torchqat.ptq.calibrate import calibrate, needs_data
from torchqat.reports.report import Report, read_report
from torchqat.runs.cache_note import cache_note
from torchqat.runs.float_model import FloatModel, check_data_given
from torchqat.runs.folder import changed_report
from torchqat.runs.identity import key_of, made_of, plan_content, settings_content
from torchqat.runs.opened import EXAMPLE, opened
from torchqat.runs.progress import Progress
from torchqat.training.lora import without_adapter
from torchqat.training.oscillation import unsettled_note
from torchqat.training.processes import all_cores, is_first

_ONE = "Held-out data to report are one sequence, so that differences have no interval: whether they are noise is not known."


class Run:
    """A recipe at work in a folder.

    Args:
        recipe: As loaded; ``--model`` and ``--data`` have been written into it.
        folder: The run's folder.
        progress: Where news goes.
        float_model: What it starts from, where another run has read it already; the recipe's when ``None``.
        data_of: Another run, whose batches it has as well; the recipe's when ``None``.
        plan: What becomes of each layer, where that is not what the recipe says.
        kept: What it is made of, where its folder says so: nothing is read to find out.

    Attributes:
        streamed: Whether it never has all of its model (streamed.py).
        dtype: What its checkpoints were asked to be in: ``float32``, ``bfloat16`` or ``float16``; empty if nothing was.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        progress: Progress,
        float_model: FloatModel | None = None,
        data_of: "Run | None" = None,
        plan: Plan | None = None,
        kept: dict[str, Any] | None = None,
    ):
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self.float_model = float_model or FloatModel(recipe, progress)
        self._data_of, self._plan, self._kept = data_of, plan, kept
        self.streamed, self.dtype = False, ""

    # -- what the run works on ---------------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        """What the model is for."""
        return self.float_model.kind

    @property
    def device(self) -> torch.device:
        """Where it computes; between two steps, models lie on the host."""
        return self.float_model.device

    @property
    def model_path(self) -> str:
        return self.float_model.path

    @property
    def corpus(self) -> Corpus:
        return self.float_model.corpus

    @property
    def tokenizer(self):
        return self.float_model.tokenizer

    @property
    def original(self) -> nn.Module:
        """The float model: baseline and teacher. Never changed."""
        return self.float_model.original

    @cached_property
    def data(self) -> Data:
        if self._data_of is not None:
            return self._data_of.data
        check_data_given(self.recipe)
        data = self.kind.load_data(self.recipe, self.tokenizer, self.progress.say)
        check_tokens(self.float_model.outline, self.tokenizer, data.largest_token, self.model_path)
        self.kind.check_given(self.float_model.outline, data.given, self.recipe.data.train)
        longest = data.longest(trains=self.recipe.train.steps > 0)
        beyond = check_positions(self.float_model.outline, longest, self.model_path)
        for note in filter(None, [*data.notes, beyond, _ONE if data.measured_rows == 1 else ""]):
            self.float_model.note(note)
        return data

    def settle_steps(self) -> None:
        """Where the recipe says how often its data are gone through, how many steps that is."""
        train = self.recipe.train
        if train.epochs is None:
            return
        steps = max(1, math.ceil(train.epochs * self.data.train.steps_of_epoch))
        if steps != train.steps:
            train.steps = steps
            self.progress.say(f"{train.epochs:g} passes over the data are {steps} steps.")

    @cached_property
    def task(self) -> Task | None:
        """What every variant is measured on: the user's own task, or the kind's."""
        named = self.recipe.evaluate.task
        return load_task(named) if named else self.kind.own_task(self.data)

    def scores(self, model: nn.Module) -> list[float]:
        """Of ``model`` on the task, one an example."""
        with on_device(model, self.device):
            return self.task.scores(model, self.tokenizer, self.kind.rank)

    @cached_property
    def plan(self) -> Plan:
        return self._plan or make_plan(self.float_model.outline, self.recipe)

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What results depend on (identity.py); not the limits that they are held against."""
        if self._kept is not None:
            return self._kept
        return made_of(self.recipe, self.plan, self.float_model.content, self.data, self.task, self.streamed)

    @property
    def identity(self) -> str:
        """A word that changes with ``made_of``."""
        return key_of(self.made_of)

    def fresh_model(self) -> nn.Module:
        return copy.deepcopy(self.original).requires_grad_(True)

    def prepared(self, plan: Plan, method: str | Initialize | None = None, kept: Path | None = None) -> nn.Module:
        """A quantized model before training. Where data decide what it is, it is calibrated once and kept.

        Args:
            plan: What becomes of each layer.
            method: How weights are rounded; as the recipe says when ``None``.
            kept: Where; in ``checkpoints`` when ``None``.
        """
        own = method is None
        settings = Initialize(method) if isinstance(method, str) else method or self.recipe.initialize
        model = prepare(self.fresh_model(), plan, settings, self.recipe.train.weight_cache)
        if not is_first():
            note_calibration(model)  # the first process does it, and deals out its numbers
            return model
        on_data = needs_data(model)
        kept = kept or self.folder / "checkpoints" / ("initialized.pt" if own else f"{settings.method}.pt")
        identity = f"{self.identity} {plan_content(plan)} {settings_content(settings)}"
        if on_data and kept.is_file():
            state = load_state(kept)
            if state["identity"] == identity:
                model.load_state_dict(state["model"])
                return model
        if not on_data:  # calibrate sees to it where it runs the model anyway
            with on_device(model, self.device) as placed:
                check_called(model, [to_device(self.example, placed.device)], self.kind.outputs)
        if own and settings.needs_data:
            self.progress.say(f"Calibrating with {settings.method}")
        batches = self.data.calibration if on_data else []
        with all_cores():
            warnings = calibrate(model, batches, self.kind.outputs, self.device).warnings
        if own:
            warnings += self._notes(model)
        for warning in warnings:
            self.progress.say(f"Note: {warning}")
        if on_data:
            save_state(kept, {"identity": identity, "model": model.state_dict()})
            if own:
                with self.changed_report() as report:
                    report.notes = [*self.float_model.notes, *warnings]
        return model

    def _notes(self, model: nn.Module) -> list[str]:
        """What the user should know of the model that is about to be trained or exported."""
        asked, cache = self.recipe.data.calibration, cache_spec(model)
        notes = [cache_note(cache, format, self.recipe.engine) for format in self.recipe.exports]
        if self.recipe.initialize.needs_data:
            notes.append(shortfall(self.data.calibration, asked.samples, asked.sequence_length))
        notes.append(fusion_warning(checkpoint_plan(model)))
        if self.recipe.train.steps and self.recipe.train.parameters == "lora":
            notes.append(without_adapter(model))
        if self.recipe.train.steps:
            notes.append(unsettled_note(model, self.recipe.train.oscillation))
        return [note for note in notes if note]

    def measure(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.data.evaluation, self.original, self.kind, self.device)

    @cached_property
    def exported_widths(self) -> list[int]:
        return sorted({layer.weight.bits for layer in self.plan.layers if layer.weight})

    @cached_property
    def exported_types(self) -> list[str]:
        """Number types of the weights as recipes name them, those of the fewest bits first."""
        bits = {layer.weight.type_name: layer.weight.bits for layer in self.plan.layers if layer.weight}
        return sorted(bits, key=lambda name: (bits[name], name))

    @property
    def width_names(self) -> str:
        """For names of files: ``int4-int8``."""
        return "-".join(self.exported_types)

    @property
    def width_title(self) -> str:
        """For people: ``INT4/INT8``."""
        return "/".join(self.exported_types).upper()

    # -- what it keeps -----------------------------------------------------------------------------------------------

    def opened(self, resume: bool = False, restart: bool = False) -> AbstractContextManager[None]:
        """The folder, ready for work and held while the ``with`` lasts.

        Whatever the input may be wrong in shows here, before anything is written; a folder that is not a run's, that another
        process works in, or that has a run which was not meant, is not touched.

        Args:
            resume: Go on with the run that is there.
            restart: Delete the run that is there.

        Raises:
            UserError: One of these.
        """
        return opened(self, resume, restart)

    @cached_property
    def example(self) -> Batch:
        """A batch of held-out data, which the folder keeps: what is exported can be tried without the data."""
        path = self.folder / EXAMPLE
        return load_state(path)["batch"] if path.is_file() else self.data.evaluation[0]

    def report(self) -> Report:
        """What was measured so far."""
        return read_report(self.folder)

    def changed_report(self) -> AbstractContextManager[Report]:
        """The report, to be changed in a ``with``."""
        return changed_report(self.folder)
