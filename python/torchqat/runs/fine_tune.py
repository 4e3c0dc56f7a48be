"""The training of a run: along the recipe's schedule, keeping the state that is nearest to the float model."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from torchqat._library import BitSchedule
from torchqat.data.batch import Batch
from torchqat.device import CPU
from torchqat.evaluation.evaluate import evaluate
from torchqat.kinds.kind import is_plain
from torchqat.layers.quant_layer import QuantLayer
from torchqat.layers.sharded import is_sharded
from torchqat.runs.metrics import append_metric, tensorboard
from torchqat.runs.run import Run
from torchqat.runs.teacher import TaughtBatches, asks_float_model, stored_teacher, untaught
from torchqat.training.best_state import BestState
from torchqat.training.loop import TrainingLoop
from torchqat.training.lora import merge_adapters
from torchqat.training.monitor import Monitor
from torchqat.training.oscillation import against_oscillation
from torchqat.training.parameters import choose_parameters
from torchqat.training.processes import count, is_first, wait, wait_for_first
from torchqat.training.recomputation import recompute_activations
from torchqat.training.schedule import Schedule
from torchqat.training.spread import Loss, compile_blocks, replicate, shard


def fine_tune(run: Run) -> nn.Module:
    """Fine-tune along the schedule; returns the trained model at its exported widths.

    A model that was spread over processes stays so, in its last state; what to export is in the run's folder (restore.py).
    """
    model = run.prepared(run.plan)
    choose_parameters(run.recipe.train, model)
    teacher = stored_teacher(run)
    loss = spread(run, model)
    metrics = run.folder / "metrics.jsonl"
    show = run.progress.steps("Fine-tuning", run.recipe.train.steps)
    best = _best_state(run, model)
    monitor = Monitor(model) if run.recipe.train.monitor and is_first() else None
    board = tensorboard(run.folder / "tensorboard") if run.recipe.train.tensorboard and is_first() else None
    measures = best is not None and (is_first() or is_sharded(model))  # a model that is spread needs all processes

    def record(step: int, figures: dict[str, float]) -> None:
        line = {"step": step, **figures, "weight_bits": _widths(run, step - 1)}
        if measures and is_checked(run, step):
            line["validation_kl"] = best.consider(step)
            model.train(step < run.recipe.train.steps)
        if not is_first():
            return
        append_metric(metrics, line)
        if board is not None:
            board(line)
        show(step, figures)

    loop = TrainingLoop(
        model,
        loss,
        run.data.train if teacher is None else TaughtBatches(run.data.train, teacher),
        run.recipe.train,
        schedule=lambda optimizer: Schedule(model, run.recipe, run.recipe.train.steps, optimizer, say=run.progress.say),
        checkpoint=run.folder / "checkpoints" / "train.pt",
        identity=run.identity,
        on_step=record,
        steady=not is_plain(run.recipe.distill),
        monitor=monitor,
        settles=against_oscillation(model, run.recipe.train.oscillation, run.recipe.train.steps),
    )
    if measures and not best.history:
        best.consider(0)  # at the exported widths, before the schedule begins
    loop.run()
    wait()  # for the process that writes
    if best is not None:
        _keep_best(run, best)
    if is_sharded(model):
        return model.eval()
    run.original.to(CPU)
    return merge_adapters(model).to(CPU).eval()


def spread(run: Run, model: nn.Module) -> Loss:
    """Put ``model`` and the float one where they train, as the recipe says; returns the loss to train with."""
    train = run.recipe.train
    if train.gradient_checkpointing:
        recompute_activations(model)
    if train.compile:
        compile_blocks(model)
    wait_for_first()
    if count() > 1 and train.strategy == "fsdp":
        shard(run.original, nn.Linear, train.cpu_offload, run.device)
        return distillation(run, shard(model, QuantLayer, train.cpu_offload, run.device))
    if asks_float_model(run.recipe.distill):
        run.original.to(run.device)
    return replicate(model.to(run.device), distillation(run, model))


def distillation(run: Run, model: nn.Module):
    """The loss of the recipe's ``distill`` section."""
    settings, kind = run.recipe.distill, run.kind

    def loss(batch: Batch) -> Tensor:
        batch, stored = untaught(batch)
        with products_in_precision(run):
            student = kind.outputs(model, batch)
            if is_plain(settings):
                return kind.loss(settings, student, None, batch)
            if stored is not None:
                return kind.loss(settings, student, stored, batch)
            with torch.no_grad():
                teacher = kind.outputs(run.original, batch)
            return kind.loss(settings, student, teacher, batch)

    return loss


def products_in_precision(run: Run) -> AbstractContextManager:
    """Autocast, where the recipe's ``train.mixed_precision`` says so.

    Weights are rounded from their masters in float32, as they are exported: it is products that it changes.
    """
    mixed = run.recipe.train.mixed_precision != "none"
    return torch.autocast(run.device.type, torch.bfloat16, enabled=mixed)


def is_checked(run: Run, step: int) -> bool:
    """Whether the state after ``step`` steps is measured: it must be at the exported widths."""
    total = run.recipe.train.steps
    bits = BitSchedule(run.recipe, total)
    exported = all(
        (layer.weight is None or bits.weight_bits(step, layer.weight.bits) == layer.weight.bits)
        and (layer.input is None or bits.input_bits(step, layer.input.bits) == layer.input.bits)
        for layer in run.plan.layers
    )
    return exported and (step % run.recipe.train.validate_every == 0 or step == total)


def _best_state(run: Run, model: nn.Module) -> BestState | None:
    if run.recipe.train.validate_every == 0:
        return None
    path = run.folder / "checkpoints" / "best.pt"

    def measure() -> float:
        return evaluate(model, run.data.validation, run.original, run.kind, run.device).kl

    return BestState(model, measure, path, run.identity)


def _keep_best(run: Run, best: BestState) -> None:
    if not is_sharded(best.model):
        best.restore()
    if not is_first():
        return
    step = best.step
    with run.changed_report() as report:
        report.validation = {"start": best.start, "best": best.best, "step": step}
        if step == 0:
            note = (
                f"Training did not help: KL on validation data was {best.start:.5f} before it and never lower, so what is "
                "exported is the state before training."
            )
            report.notes += [] if note in report.notes else [note]  # of a run that was cut off after it said so
            run.progress.say(f"Note: {note}")


def _widths(run: Run, step: int) -> list[int]:
    """The weight widths in force while ``step`` was taken."""
    bits = BitSchedule(run.recipe, run.recipe.train.steps)
    return sorted({bits.weight_bits(step, layer.weight.bits) for layer in run.plan.layers if layer.weight})
