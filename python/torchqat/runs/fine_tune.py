"""The training of a run: along the recipe's schedule, keeping the state that is nearest to the float model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import BitSchedule
from torchqat.data.batch import Batch
from torchqat.errors import UserError
from torchqat.kinds.kind import is_plain
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import is_sharded
from torchqat.ptq.blocks import find_blocks
from torchqat.runs.run import Run
from torchqat.training.best_state import BestState
from torchqat.training.loop import TrainingLoop
from torchqat.training.lora import add_adapters, merge_adapters
from torchqat.training.monitor import Monitor
from torchqat.training.oscillation import against_oscillation
from torchqat.training.parameters import freeze_codes
from torchqat.training.processes import count, is_first, shard, wait, wait_for_first, wrapped
from torchqat.training.schedule import Schedule


def fine_tune(job: Run) -> nn.Module:
    """Fine-tune along the schedule; returns the trained model at its exported widths.

    A model that was spread over processes stays so, in its last state; what to export is in the run's folder (restore.py).
    """
    model = job.prepared(job.plan)
    choose_parameters(job, model)
    parallel = spread(job, model)
    metrics = job.folder / "metrics.jsonl"
    show = job.progress.steps("Fine-tuning with the schedule", job.recipe.train.steps)
    best = _best_state(job, model)
    monitor = Monitor(model) if job.recipe.train.monitor else None
    board = _tensorboard(job)
    measures = best is not None and (is_first() or is_sharded(model))  # a model that is spread needs all processes

    def record(step: int, figures: dict[str, float]) -> None:
        line = {"step": step, **figures, "weight_bits": _widths(job, step - 1)}
        if measures and is_checked(job, step):
            line["validation_kl"] = best.consider(step)
            model.train(step < job.recipe.train.steps)
        if not is_first():
            return
        line.update(monitor.step() if monitor is not None else {})
        _append_metric(metrics, line)
        board(line)
        show(step, figures)

    loop = TrainingLoop(
        model,
        distillation(job, parallel),
        job.data.train,
        job.recipe.train,
        schedule=lambda optimizer: Schedule(model, job.recipe, job.recipe.train.steps, optimizer, say=job.progress.say),
        checkpoint=job.folder / "checkpoints" / "train.pt",
        identity=job.identity,
        on_step=record,
        steady=not is_plain(job.recipe.distill),
        parallel=parallel,
        settles=against_oscillation(model, job.recipe.train.oscillation, job.recipe.train.steps),
    )
    if measures and not best.history:
        best.consider(0)  # at the exported widths, before the schedule begins
    loop.run()
    wait()  # for the process that writes
    if best is not None:
        _keep_best(job, best)
    if is_sharded(model):
        return model.eval()
    job.original.to("cpu")
    return merge_adapters(model).to("cpu").eval()


def spread(job: Run, model: nn.Module) -> nn.Module:
    """Put ``model`` and the float one where they train, as the recipe says; returns what the loss has to call."""
    train = job.recipe.train
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if train.compile:
        compile_blocks(model)
    if count() > 1 and train.strategy == "fsdp":
        wait_for_first()
        shard(job.original, nn.Linear, train.cpu_offload)
        return shard(model, QuantLayer, train.cpu_offload)
    device = training_device()
    job.original.to(device)
    return wrapped(model.to(device))


def compile_blocks(model: nn.Module) -> None:
    """``torch.compile`` for each block, or a model without blocks, in place; blocks that are alike share what is made."""
    # Each width of a schedule is a variant, and so are training and evaluation.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for module in [block for _, block in find_blocks(model)] or [model]:
        module.compile()


def training_device() -> torch.device:
    """The GPU of this process, where there is one: training goes there, everything else stays on the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_parameters(job: Run, model: nn.Module) -> None:
    """Leave what the recipe's ``train.parameters`` names as all that trains."""
    if job.recipe.train.parameters == "scales":
        freeze_codes(model)
    if job.recipe.train.parameters == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.recipe.train.seed)  # they begin at random numbers
            add_adapters(model, job.recipe.train.lora)


def _tensorboard(job: Run) -> Callable[[dict], None]:
    """Writes the numbers of a step for TensorBoard, where the recipe asks for it."""
    if not job.recipe.train.tensorboard or not is_first():
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
    mixed = job.recipe.train.mixed_precision != "none"

    def loss(batch: Batch) -> Tensor:
        # Weights are rounded from their masters in float32, as they are exported: it is products that autocast changes.
        with torch.autocast(training_device().type, torch.bfloat16, enabled=mixed):
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
    if not is_sharded(best.model):
        best.restore()
    if not is_first():
        return
    step = best.step
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
