"""The training of a run: along the recipe's schedule, keeping the state that is nearest to the float model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import BitSchedule
from torchqat.batches import Batch
from torchqat.best_state import BestState
from torchqat.distributed import is_first, wait, wrapped
from torchqat.errors import UserError
from torchqat.frozen import freeze_codes
from torchqat.kinds.kind import is_plain
from torchqat.lora import add_adapters, merge_adapters
from torchqat.monitor import Monitor
from torchqat.oscillation import against_oscillation
from torchqat.run import Run
from torchqat.schedule import Schedule
from torchqat.training import TrainingLoop


def fine_tune(job: Run) -> nn.Module:
    """Fine-tune along the schedule; returns the trained model at its exported widths."""
    model = job.prepared(job.plan)
    choose_parameters(job, model)
    device = training_device()
    model.to(device)
    job.original.to(device)
    parallel = wrapped(model)
    metrics = job.folder / "metrics.jsonl"
    show = job.progress.steps("Fine-tuning with the schedule", job.recipe.train.steps)
    best = _best_state(job, model)
    monitor = Monitor(model) if job.recipe.train.monitor else None
    board = _tensorboard(job)

    def record(step: int, figures: dict[str, float]) -> None:
        line = {"step": step, **figures, "weight_bits": _widths(job, step - 1)}
        line.update(monitor.step() if monitor is not None else {})
        if best is not None and is_checked(job, step):
            line["validation_kl"] = best.consider(step)
            model.train(step < job.recipe.train.steps)
        _append_metric(metrics, line)
        board(line)
        show(step, figures)

    loop = TrainingLoop(
        model,
        distillation(job, parallel),
        job.data.train,
        job.recipe.train,
        schedule=lambda optimizer: Schedule(model, job.recipe, job.recipe.train.steps, optimizer),
        checkpoint=job.folder / "checkpoints" / "train.pt",
        identity=job.identity,
        on_step=record,
        steady=not is_plain(job.recipe.distill),
        parallel=parallel,
        settles=against_oscillation(model, job.recipe.train.oscillation, job.recipe.train.steps),
    )
    if job.recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if best is not None and not best.history and is_first():
        best.consider(0)  # at the exported widths, before the schedule begins
    loop.run()
    wait()  # for the process that writes
    if best is not None:
        _keep_best(job, best)
    job.original.to("cpu")
    return merge_adapters(model).to("cpu").eval()


def training_device() -> torch.device:
    """The GPU of this process, where there is one: training goes there, everything else stays on the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_parameters(job: Run, model: nn.Module) -> None:
    """Leave what the recipe's ``train.parameters`` names as all that trains."""
    if job.recipe.train.parameters == "scales":
        freeze_codes(model)
    if job.recipe.train.parameters == "lora":
        add_adapters(model, job.recipe.train.lora)


def _tensorboard(job: Run) -> Callable[[dict], None]:
    """Writes the numbers of a step for TensorBoard, where the recipe asks for it."""
    if not job.recipe.train.tensorboard:
        return lambda line: None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "train.tensorboard needs tensorboard, which is not installed: pip install torchqat[tensorboard]."
        ) from error
    writer = SummaryWriter(str(job.folder / "tensorboard"))

    def write(line: dict) -> None:
        for name, value in line.items():
            if name == "weight_bits":
                value = max(value)
            if name != "step" and _number(value) is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write


def distillation(job: Run, model: nn.Module):
    """The loss of the recipe's ``distill`` section."""
    settings, kind = job.recipe.distill, job.kind

    def loss(batch: Batch) -> Tensor:
        student = kind.outputs(model, batch)
        if is_plain(settings):
            return kind.loss(settings, student, None, batch)
        with torch.no_grad():
            teacher = kind.outputs(job.original, batch)
        return kind.loss(settings, student, teacher, batch)

    return loss


def is_checked(job: Run, step: int) -> bool:
    """Whether the state after ``step`` steps is measured: it must be at the exported widths."""
    total = job.recipe.train.steps
    bits = BitSchedule(job.recipe, total)
    exported = all(
        (layer.weight is None or bits.weight_bits(step, layer.weight.bits) == layer.weight.bits)
        and (layer.input is None or bits.input_bits(step, layer.input.bits) == layer.input.bits)
        for layer in job.plan.layers
    )
    return exported and (step % job.recipe.train.validate_every == 0 or step == total)


def _best_state(job: Run, model: nn.Module) -> BestState | None:
    if job.recipe.train.validate_every == 0:
        return None
    path = job.folder / "checkpoints" / "best.pt"
    return BestState(model, job.original, job.data.validation, path, job.identity, job.kind)


def _keep_best(job: Run, best: BestState) -> None:
    step = best.restore()
    if not is_first():
        return
    report = job.load_report()
    report.validation = {"start": best.start, "best": best.best, "step": step}
    if step == 0:
        report.notes.append(
            f"Training did not help: KL on validation data was {best.start:.5f} before it and never lower, so what is "
            "exported is the state before training."
        )
        job.progress.say(f"Note: {report.notes[-1]}")
    job.save_report(report)


def _widths(job: Run, step: int) -> list[int]:
    """The weight widths in force while ``step`` was taken."""
    bits = BitSchedule(job.recipe, job.recipe.train.steps)
    return sorted({bits.weight_bits(step, layer.weight.bits) for layer in job.plan.layers if layer.weight})


def _append_metric(path: Path, line: dict) -> None:
    """One line a step; a resumed run writes the steps after its checkpoint again, the last line counts."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({name: _number(value) for name, value in line.items()}) + "\n")


def _number(value: Any) -> Any:
    """JSON has no NaN: the loss of a batch that was skipped is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
