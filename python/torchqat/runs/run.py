"""A recipe at work in a folder: what it works on, and what it keeps. ``flow.py`` has the stages."""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from torchqat.data.corpus import Corpus, load_corpus
from torchqat.data.tasks import Task, load_task
from torchqat.errors import UserError
from torchqat.evaluation.evaluate import Evaluation, evaluate
from torchqat.files import load_state, read_json, save_state, write_json, write_text
from torchqat.kinds import Kind, find_kind
from torchqat.model.prepare import make_plan, prepare
from torchqat.ptq.calibrate import calibrate
from torchqat.reports.report import Report, environment
from torchqat.runs.locking import locked, others_in, remove_leftovers
from torchqat.runs.progress import Progress
from torchqat.runs.scratch import train_scratch
from torchqat.training.processes import is_first, wait


@dataclass
class Run:
    """A recipe at work in a folder.

    Attributes:
        recipe: As loaded; ``--model`` and ``--data`` have been written into it.
        folder: The run's folder.
        progress: Where news goes.
    """

    recipe: Recipe
    folder: Path
    progress: Progress

    # -- what the run works on ---------------------------------------------------------------------------------------

    @cached_property
    def corpus(self) -> Corpus:
        self._check_data_given()
        return load_corpus(self.recipe.data.train, self.recipe.data.evaluation_path)

    def _check_data_given(self) -> None:
        if not self.recipe.data.train:
            raise UserError("data must be given, by data.train in the recipe or by --data, but is not.")

    @cached_property
    def model_path(self) -> str:
        """The float model's folder or hub id; trains the recipe's scratch model first if it is not cached."""
        if self.recipe.model.path:
            return self.recipe.model.path
        if self.recipe.model.scratch is None:
            raise UserError("model must be given, by model.path in the recipe or by --model, but is not.")
        return str(train_scratch(self.recipe, self.corpus, self.progress))

    @cached_property
    def kind(self) -> Kind:
        """What the model is for."""
        return find_kind(self.recipe.model.kind)

    @cached_property
    def tokenizer(self):
        return self.kind.load_tokenizer(self.model_path)

    @cached_property
    def original(self) -> nn.Module:
        """The float model: baseline and teacher. Never changed.

        Where several processes hold parts of it, the first alone reads its numbers; ``distributed.shard`` deals them out.
        """
        load = self.kind.load if self.reads_weights else self.kind.outline
        return load(self.model_path, self.recipe.model.dtype).requires_grad_(False)

    @property
    def reads_weights(self) -> bool:
        """Whether this process has the whole model, before it is spread."""
        return is_first() or self.recipe.train.strategy != "fsdp"

    @cached_property
    def data(self) -> Data:
        self._check_data_given()
        return self.kind.load_data(self.recipe, self.tokenizer)

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
        return make_plan(self.original, self.recipe)

    @cached_property
    def identity(self) -> str:
        """Changes with anything that a result depends on; not with the limits that it is held against."""
        digest = sha256(_without_limits(self.recipe.text).encode())
        digest.update(repr((self.model_path, torch.__version__, __version__)).encode())
        for batch in [self.data.train.everything(), *self.data.evaluation]:
            digest.update(digest_of(batch))
        return digest.hexdigest()[:16]

    def fresh_model(self) -> nn.Module:
        return copy.deepcopy(self.original).requires_grad_(True)

    def prepared(self, plan: Plan, method: str | Initialize | None = None) -> nn.Module:
        """A quantized model before training. The recipe's own is calibrated once and kept."""
        model = prepare(self.fresh_model(), plan, method or self.recipe.initialize, self.recipe.train.weight_cache)
        if not self.reads_weights:
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
            report = self.load_report()
            report.notes = warnings
            self.save_report(report)
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

    # -- what it keeps -----------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """The folder, ready for work and held. One that is not a run's, or that another process works in, is not touched."""
        if others_in(self.folder) and not (self.folder / "run.json").is_file():
            raise UserError(f"output must be an empty folder or that of a run, but {self.folder} has other files.")
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
        with locked(self.folder):
            remove_leftovers(self.folder)
            report = self.load_report() if resume and self._belongs(settings) else Report()
            if not resume:
                for name in ("checkpoints", "candidates", "metrics.jsonl"):
                    _remove(self.folder / name)
            write_json(self.folder / "run.json", settings)  # first: it says that the folder is a run's
            write_text(self.folder / "recipe.yaml", self.recipe.text)
            write_text(self.folder / "plan.txt", plan)
            report.environment = environment()
            self.save_report(report)
            wait()
            yield

    def _belongs(self, settings: dict) -> bool:
        """Whether what the folder holds was made from the same recipe, model and data."""
        path = self.folder / "run.json"
        return path.is_file() and read_json(path, "The settings of a run").get("identity") == settings["identity"]

    def load_report(self) -> Report:
        path = self.folder / "report.json"
        return Report.from_json(read_json(path, "The report of a run")) if path.is_file() else Report()

    def save_report(self, report: Report) -> None:
        write_json(self.folder / "report.json", report.to_json())

    def measure(self, model: nn.Module) -> Evaluation:
        return evaluate(model, self.data.evaluation, self.original, self.kind)

    @cached_property
    def exported_widths(self) -> list[int]:
        return sorted({layer.weight.bits for layer in self.plan.layers if layer.weight})

    @property
    def width_names(self) -> str:
        return "-".join(f"int{bits}" for bits in self.exported_widths)


def _without_limits(text: str) -> str:
    """A recipe but for what decides over results that are there already."""
    import yaml  # transformers brings it

    recipe = yaml.safe_load(text)
    for key in ("size", "engine"):
        recipe.pop(key, None)
    (recipe.get("evaluate") or {}).pop("accept", None)
    return json.dumps(recipe, sort_keys=True, default=str)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
