"""``torchqat run``: the whole flow, stage by stage, each kept so that an interrupted run goes on where it was."""

import copy
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

import torchqat
from torchqat._library import BitSchedule, Initialize, Plan, Recipe, holds_kv_cache, naive_plan
from torchqat.best_state import BestState
from torchqat.calibrate import calibrate
from torchqat.convert import convert
from torchqat.data import Corpus, Data, load_corpus, load_data, shortfall
from torchqat.errors import UserError
from torchqat.evaluate import Evaluation, evaluate
from torchqat.export import check_exports, checked_format, export
from torchqat.files import load_state, read_json, save_state, size_of, write_json, write_text
from torchqat.formats.tensors import cache_spec, checkpoint_plan, float_tensors
from torchqat.frozen import freeze_codes
from torchqat.losses import cross_entropy, forward_kl
from torchqat.models import load_model, load_tokenizer
from torchqat.prepare import make_plan, prepare
from torchqat.progress import Progress
from torchqat.report import Report, Variant, environment, recovered
from torchqat.schedule import Schedule
from torchqat.scratch import train_scratch
from torchqat.training import TrainingLoop
from torchqat.verify import verify


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
        if not self.recipe.data.train:
            raise UserError("data must be given, by data.train in the recipe or by --data, but is not.")
        return load_corpus(self.recipe.data.train, self.recipe.data.evaluation_path)

    @cached_property
    def model_path(self) -> str:
        """The float model's folder or hub id; trains the recipe's scratch model first if it is not cached."""
        if self.recipe.model.path:
            return self.recipe.model.path
        if self.recipe.model.scratch is None:
            raise UserError("model must be given, by model.path in the recipe or by --model, but is not.")
        return str(train_scratch(self.recipe, self.corpus, self.progress))

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.model_path)

    @cached_property
    def original(self) -> nn.Module:
        """The float model: baseline and teacher. Never changed."""
        return load_model(self.model_path, self.recipe.model.dtype).requires_grad_(False)

    @cached_property
    def data(self) -> Data:
        return load_data(self.recipe, self.corpus, self.tokenizer)

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.original, self.recipe)

    @cached_property
    def identity(self) -> str:
        """Changes with anything that a result depends on."""
        digest = sha256(self.recipe.text.encode())
        digest.update(repr((self.model_path, torch.__version__, torchqat.__version__)).encode())
        digest.update(self.data.train.tokens.numpy().tobytes())
        for batch in self.data.evaluation:
            digest.update(batch.numpy().tobytes())
        return digest.hexdigest()[:16]

    def fresh_model(self) -> nn.Module:
        return copy.deepcopy(self.original).requires_grad_(True)

    def prepared(self, plan: Plan, method: str | Initialize | None = None) -> nn.Module:
        """A quantized model before training. The recipe's own is calibrated once and kept."""
        model = prepare(self.fresh_model(), plan, method or self.recipe.initialize, self.recipe.train.weight_cache)
        kept = self.folder / "checkpoints" / "initialized.pt" if method is None else None
        if kept is not None and kept.is_file():
            state = load_state(kept)
            if state["identity"] == self.identity:
                model.load_state_dict(state["model"])
                return model
        if method is None and self.recipe.initialize.needs_data:
            self.progress.say(f"Calibrating with {self.recipe.initialize.method}")
        warnings = calibrate(model, self.data.calibration).warnings
        cache = cache_spec(model)
        asked = self.recipe.data.calibration
        short = shortfall(self.data.calibration, asked.samples, asked.sequence_length)
        if method is None and short and self.recipe.initialize.needs_data:
            warnings.append(short)
        if method is None and cache is not None and not holds_kv_cache(cache):
            warnings.append(f"The cache ({cache}) is a setting of the engine; the checkpoint does not hold it.")
        for warning in warnings:
            self.progress.say(f"Note: {warning}")
        if kept is not None and (self.recipe.initialize.needs_data or cache is not None):
            save_state(kept, {"identity": self.identity, "model": model.state_dict()})
            report = self.load_report()
            report.notes = warnings
            self.save_report(report)
        return model

    # -- stages ------------------------------------------------------------------------------------------------------

    def open(self, resume: bool) -> None:
        """Make the folder ready. A folder that is not a run's is never touched."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "run.json").is_file():
            raise UserError(f"output must be an empty folder or that of a run, but {self.folder} has other files.")
        # Whatever the input may be wrong in shows here, before anything is written.
        plan = str(self.plan)
        check_exports(self.original, self.plan, self.recipe.exports)
        settings = {
            "steps": self.recipe.train.steps,
            "model": self.model_path,
            "data": self.recipe.data.train,
            "identity": self.identity,
        }
        report = self.load_report() if resume and self._belongs(settings) else Report()
        if not resume:
            for name in ("checkpoints", "metrics.jsonl"):
                _remove(self.folder / name)
        write_text(self.folder / "recipe.yaml", self.recipe.text)
        write_json(self.folder / "run.json", settings)
        write_text(self.folder / "plan.txt", plan)
        report.environment = environment()
        self.save_report(report)

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
        return evaluate(model, self.data.evaluation, self.original)

    def baseline(self) -> None:
        report = self.load_report()
        if report.baseline:
            return
        self.progress.say("Measuring the full-precision baseline")
        figures = evaluate(self.original, self.data.evaluation)
        size = sum(t.numel() * t.element_size() for _, t in float_tensors(self.original))
        report.baseline = {"perplexity": figures.perplexity, "bytes": size, "tokens": figures.tokens}
        self.save_report(report)

    def naive(self, bits: int) -> None:
        """Round to nearest at ``bits``, without training, and export it."""
        name = f"int{bits}-naive"
        report = self.load_report()
        if report.variant(name):
            return
        self.progress.say(f"Rounding to int{bits} without training")
        model = self.prepared(naive_plan(self.plan, bits), "rtn")
        report.put(self._variant(name, f"INT{bits} round to nearest", model, f"-{name}"))
        self.save_report(report)

    def initialized(self) -> None:
        """What post-training quantization alone gives, exported."""
        report = self.load_report()
        name = f"{self._width_names()}-{self.recipe.initialize.method}".replace("+", "-")
        if report.variant(name) or not (self.recipe.initialize.needs_data or self.recipe.train.steps == 0):
            return
        model = self.prepared(self.plan)
        method = f"{self._width_names().upper().replace('-', '/')} {self.recipe.initialize.method}"
        variant = self._variant(name, method, model, f"-{name}")
        if self.recipe.train.steps == 0:
            self._export_others(model, f"-{name}")
        report = self.load_report()
        report.put(variant)
        if self.recipe.train.steps == 0:
            report.accepted = self._accepted(report, variant)
        self.save_report(report)

    @cached_property
    def exported_widths(self) -> list[int]:
        return sorted({layer.weight.bits for layer in self.plan.layers if layer.weight})

    def _width_names(self) -> str:
        return "-".join(f"int{bits}" for bits in self.exported_widths)

    def control(self) -> None:
        """The float model fine-tuned for the same steps on the same batches with cross-entropy."""
        report = self.load_report()
        if report.variant("float-control"):
            return
        model = self.fresh_model()
        loop = TrainingLoop(
            model,
            lambda tokens: cross_entropy(model(input_ids=tokens, use_cache=False).logits, tokens),
            self.data.train,
            self.recipe.train,
            checkpoint=self.folder / "checkpoints" / "control.pt",
            identity=self.identity,
            on_step=self.progress.steps("Fine-tuning the float control", self.recipe.train.steps),
        )
        figures = self.measure(loop.run())
        size = int(report.baseline["bytes"])
        bits = 8.0 * next(model.parameters()).element_size()
        report.put(Variant.of("float-control", "full precision, fine-tuned as long", bits, figures, size))
        self.save_report(report)

    def train(self) -> nn.Module:
        """Fine-tune along the schedule; returns the trained model at its exported widths."""
        model = self.prepared(self.plan)
        if self.recipe.train.parameters == "scales":
            freeze_codes(model)
        metrics = self.folder / "metrics.jsonl"
        show = self.progress.steps("Fine-tuning with the schedule", self.recipe.train.steps)
        best = self._best_state(model)

        def record(step: int, figures: dict[str, float]) -> None:
            line = {"step": step, **figures, "weight_bits": self._widths(step - 1)}
            if best is not None and self._is_checked(step):
                line["validation_kl"] = best.consider(step)
                model.train(step < self.recipe.train.steps)
            _append_metric(metrics, line)
            show(step, figures)

        loop = TrainingLoop(
            model,
            self.distillation(model),
            self.data.train,
            self.recipe.train,
            schedule=lambda optimizer: Schedule(model, self.recipe, self.recipe.train.steps, optimizer),
            checkpoint=self.folder / "checkpoints" / "train.pt",
            identity=self.identity,
            on_step=record,
        )
        if self.recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if best is not None and not best.history:
            best.consider(0)  # at the exported widths, before the schedule begins
        loop.run()
        if best is not None:
            self._keep_best(best)
        return model.eval()

    def _best_state(self, model: nn.Module) -> BestState | None:
        if self.recipe.train.validate_every == 0:
            return None
        path = self.folder / "checkpoints" / "best.pt"
        return BestState(model, self.original, self.data.validation, path, self.identity)

    def _is_checked(self, step: int) -> bool:
        """Whether the state after ``step`` steps is measured: it must be at the exported widths."""
        total = self.recipe.train.steps
        bits = BitSchedule(self.recipe, total)
        exported = all(
            (layer.weight is None or bits.weight_bits(step, layer.weight.bits) == layer.weight.bits)
            and (layer.input is None or bits.input_bits(step, layer.input.bits) == layer.input.bits)
            for layer in self.plan.layers
        )
        return exported and (step % self.recipe.train.validate_every == 0 or step == total)

    def _keep_best(self, best: BestState) -> None:
        step = best.restore()
        report = self.load_report()
        report.validation = {"start": best.start, "best": best.best, "step": step}
        if step == 0:
            report.notes.append(
                f"Training did not help: KL on validation text was {best.start:.5f} before it and never lower, so what is "
                "exported is the state before training."
            )
            self.progress.say(f"Note: {report.notes[-1]}")
        self.save_report(report)

    def _widths(self, step: int) -> list[int]:
        """The weight widths in force while ``step`` was taken."""
        bits = BitSchedule(self.recipe, self.recipe.train.steps)
        return sorted({bits.weight_bits(step, layer.weight.bits) for layer in self.plan.layers if layer.weight})

    def distillation(self, model: nn.Module):
        """The loss of the recipe's ``distill`` section."""
        settings = self.recipe.distill

        def loss(tokens):
            logits = model(input_ids=tokens, use_cache=False).logits
            if settings.loss == "cross_entropy" or settings.weight == 0.0:
                return cross_entropy(logits, tokens)
            with torch.no_grad():
                teacher = self.original(input_ids=tokens, use_cache=False).logits
            kl = forward_kl(logits, teacher, settings.temperature)
            if settings.weight == 1.0:
                return kl
            return settings.weight * kl + (1.0 - settings.weight) * cross_entropy(logits, tokens)

        return loss

    def trained(self) -> None:
        """Train, export, verify and measure."""
        report = self.load_report()
        bits = self.exported_widths
        name = self._width_names() + "-qat"
        if report.variant(name) or self.recipe.train.steps == 0:
            return
        model = self.train()
        report = self.load_report()
        variant = self._variant(name, f"{'/'.join(f'INT{b}' for b in bits)} QAT", model, "")
        self._export_others(model, "")
        naive = report.variant(f"int{bits[0]}-naive") if len(bits) == 1 else None
        if naive:
            variant.recovered = recovered(report.baseline["perplexity"], naive, variant)
        report.accepted = self._accepted(report, variant)
        report.put(variant)
        self.save_report(report)

    def _variant(self, name: str, method: str, model: nn.Module, suffix: str) -> Variant:
        """Export ``model`` in the recipe's first format, read it back, and measure it."""
        target = self._export(model, self._format_for(model), suffix)
        folder = self.folder / target
        weights = convert(model)
        elements = sum(w.codes.numel() for w in weights)
        bits = sum(w.bits_per_weight * w.codes.numel() for w in weights) / elements
        return Variant.of(name, method, bits, self.measure(model), size_of(folder), target)

    def _export(self, model: nn.Module, format: str, suffix: str) -> str:
        """Write ``model``, and read it back; returns the folder, relative to the run."""
        target = f"exports/{format}{suffix}"
        folder = export(model, self.folder / target, format, self.tokenizer)
        checked = verify(folder, model)
        if not checked.ok:
            raise UserError(f"{folder} does not read back as it was trained: {checked}.")
        self.progress.say(f"{folder}: {checked}")
        return target

    def _export_others(self, model: nn.Module, suffix: str) -> None:
        for format in self.recipe.exports[1:]:
            self._export(model, format, suffix)

    def _format_for(self, model: nn.Module) -> str:
        """The recipe's first format; for comparisons at other widths that it cannot hold, the one that holds most."""
        try:
            return checked_format(self.recipe.exports[0], checkpoint_plan(model)).name
        except UserError:
            return "compressed-tensors"

    def _accepted(self, report: Report, variant: Variant) -> bool | None:
        limits = self.recipe.evaluate
        checks = []
        if limits.accept_kl is not None:
            checks.append(variant.kl <= limits.accept_kl)
        if limits.accept_perplexity_ratio is not None:
            checks.append(variant.perplexity <= limits.accept_perplexity_ratio * report.baseline["perplexity"])
        return all(checks) if checks else None


def run(recipe: Recipe, folder: Path, progress: Progress, resume: bool = False) -> Report:
    """Baseline, naive rounding, training, export and verification; returns the report."""
    job = Run(recipe, folder, progress)
    job.open(resume)
    job.baseline()
    for bits in recipe.evaluate.compare:
        job.naive(bits)
    job.initialized()
    if recipe.train.control:
        job.control()
    job.trained()
    return job.load_report()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _append_metric(path: Path, line: dict) -> None:
    """One line a step; a resumed run writes the steps after its checkpoint again, the last line counts."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
