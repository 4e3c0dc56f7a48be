"""A recipe at work in a folder: what it works on, and what it keeps. ``flow.py`` has the steps."""

import copy
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from torchqat._library import Initialize, Plan, Recipe, fusion_warning, holds_kv_cache
from torchqat._version import __version__
from torchqat.checkpoints.export import check_exports
from torchqat.checkpoints.formats.tensors import cache_spec, checkpoint_plan
from torchqat.data.batch import digest as digest_of
from torchqat.data.batches import Data, shortfall
from torchqat.data.corpus import Corpus
from torchqat.data.tasks import Task, load_task
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.files import load_state, save_state
from torchqat.kinds import Kind
from torchqat.model.prepare import make_plan, prepare
from torchqat.ptq.calibrate import calibrate
from torchqat.reports.report import Report, read_report
from torchqat.runs.float_model import FloatModel, check_data_given
from torchqat.runs.folder import changed_report, check_free, held
from torchqat.runs.progress import Progress
from torchqat.training.processes import is_first, wait


class Run:
    """A recipe at work in a folder.

    Args:
        recipe: As loaded; ``--model`` and ``--data`` have been written into it.
        folder: The run's folder.
        progress: Where news goes.
        float_model: What it starts from, where another run has read it already; the recipe's when ``None``.
        data: Its batches, where they are those of another run; the recipe's when ``None``.
        plan: What becomes of each layer, where that is not what the recipe says.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        progress: Progress,
        float_model: FloatModel | None = None,
        data: Data | None = None,
        plan: Plan | None = None,
    ):
        self.recipe, self.folder, self.progress = recipe, folder, progress
        self.float_model = float_model or FloatModel(recipe, progress)
        self._data, self._plan = data, plan

    # -- what the run works on ---------------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        """What the model is for."""
        return self.float_model.kind

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
        check_data_given(self.recipe)
        return self._data or self.kind.load_data(self.recipe, self.tokenizer)

    @cached_property
    def task(self) -> Task | None:
        """What every variant is measured on: the user's own task, or the kind's."""
        named = self.recipe.evaluate.task
        return load_task(named) if named else self.kind.own_task(self.data)

    def scores(self, model: nn.Module) -> list[float]:
        """Of ``model`` on the task, one an example."""
        return self.task.scores(model, self.tokenizer, self.kind.embed)

    @cached_property
    def plan(self) -> Plan:
        return self._plan or make_plan(self.original, self.recipe)

    @cached_property
    def identity(self) -> str:
        """Changes with anything that a result depends on; not with the limits that it is held against."""
        digest = sha256(_without_limits(self.recipe.text).encode())
        digest.update(repr((self.model_path, torch.__version__, __version__)).encode())
        if self._plan is not None:
            digest.update(str(self._plan).encode())
        for batch in [self.data.train.everything(), *self.data.evaluation]:
            digest.update(digest_of(batch))
        return digest.hexdigest()[:16]

    def fresh_model(self) -> nn.Module:
        return copy.deepcopy(self.original).requires_grad_(True)

    def prepared(self, plan: Plan, method: str | Initialize | None = None) -> nn.Module:
        """A quantized model before training. The recipe's own is calibrated once and kept."""
        model = prepare(self.fresh_model(), plan, method or self.recipe.initialize, self.recipe.train.weight_cache)
        if not self.float_model.reads_weights:
            return model  # the numbers come with its part
        kept = self.folder / "checkpoints" / "initialized.pt" if method is None else None
        if kept is not None and kept.is_file():
            state = load_state(kept)
            if state["identity"] == self.identity:
                model.load_state_dict(state["model"])
                return model
        if method is None and self.recipe.initialize.needs_data:
            self.progress.say(f"Calibrating with {self.recipe.initialize.method}")
        warnings = calibrate(model, self.data.calibration, self.kind.outputs).warnings
        if method is None:
            warnings += self._notes(model)
        for warning in warnings:
            self.progress.say(f"Note: {warning}")
        if kept is not None and is_first() and (self.recipe.initialize.needs_data or cache_spec(model) is not None):
            save_state(kept, {"identity": self.identity, "model": model.state_dict()})
            with self.changed_report() as report:
                report.notes = warnings
        return model

    def _notes(self, model: nn.Module) -> list[str]:
        """What the user should know of the model that is about to be trained or exported."""
        notes, cache, asked = [], cache_spec(model), self.recipe.data.calibration
        if self.recipe.initialize.needs_data:
            notes.append(shortfall(self.data.calibration, asked.samples, asked.sequence_length))
        if cache is not None and not holds_kv_cache(cache):
            notes.append(f"The cache ({cache}) is a setting of the engine; the checkpoint does not hold it.")
        notes.append(fusion_warning(checkpoint_plan(model)))
        return [note for note in notes if note]

    def measure(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.data.evaluation, self.original, self.kind)

    @cached_property
    def exported_widths(self) -> list[int]:
        return sorted({layer.weight.bits for layer in self.plan.layers if layer.weight})

    @property
    def width_names(self) -> str:
        return "-".join(f"int{bits}" for bits in self.exported_widths)

    # -- what it keeps -----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """The folder, ready for work and held. One that is not a run's, or that another process works in, is not touched."""
        check_free(self.folder)
        # Whatever the input may be wrong in shows here, before anything is written.
        plan = str(self.plan)
        check_exports(self.original, self.plan, self.recipe.exports, self.kind.writes_text)
        _ = self.task
        settings = {
            "steps": self.recipe.train.steps,
            "model": self.model_path,
            "data": self.recipe.data.train,
            "identity": self.identity,
        }
        if not is_first():
            wait()  # until the folder is ready
            yield
            return
        with held(self.folder, settings, {"recipe.yaml": self.recipe.text, "plan.txt": plan}, resume):
            wait()
            yield

    def report(self) -> Report:
        """What was measured so far."""
        return read_report(self.folder)

    def changed_report(self) -> AbstractContextManager[Report]:
        """The report, to be changed in a ``with``."""
        return changed_report(self.folder)


def _without_limits(text: str) -> str:
    """A recipe but for what decides over results that are there already."""
    import yaml  # transformers brings it

    recipe = yaml.safe_load(text)
    for key in ("size", "engine"):
        recipe.pop(key, None)
    (recipe.get("evaluate") or {}).pop("accept", None)
    return json.dumps(recipe, sort_keys=True, default=str)
