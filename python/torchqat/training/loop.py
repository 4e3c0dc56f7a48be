"""The training loop: deterministic, checkpointed, and the same for a model from scratch, a control and QAT."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchqat._library import TrainSection
from torchqat.data.batch import Batch, chunks, rows_of, to_device
from torchqat.data.batches import Batches
from torchqat.data.examples import ExampleBatches
from torchqat.device import device_of
from torchqat.errors import UserError
from torchqat.layers.sharded import is_sharded
from torchqat.model.out_of_memory import explained
from torchqat.training.finite import finite_scales, first_not_finite, scale_not_finite
from torchqat.training.monitor import Monitor
from torchqat.training.moving import Moving, overflows
from torchqat.training.noise import find_noise, remove_dropout
from torchqat.training.optimizers import rate_factor
from torchqat.training.oscillation import Dampening, Freezing
from torchqat.training.processes import count, mean, share
from torchqat.training.random_states import generator_states, seed_generators
from torchqat.training.reading import read_together
from torchqat.training.schedule import Schedule
from torchqat.training.spread import share_ranges, without_sync
from torchqat.training.state import load_training, save_training

# Batches with a loss or gradient that is not finite; more of them in a row are no accident.
_MOST_SKIPPED = 10
_LESS_MEMORY = (
    "lower train.batch_size (and raise train.gradient_accumulation) or train.sequence_length, or set "
    "train.gradient_checkpointing: true or train.parameters: lora"
)

Loss = Callable[[Batch], Tensor]
Optimizers = Callable[[nn.Module, TrainSection], list[Optimizer]]
OnStep = Callable[[int, dict[str, float]], None]


@dataclass
class TrainingLoop:
    """Trains ``model`` for ``settings.steps`` optimizer steps.

    Batch, learning rate and widths are functions of the step, and a checkpoint holds the rest of the state, so that a run
    killed at any moment and resumed ends with the same bits as one that was never interrupted.

    Attributes:
        model: The model, in the dtype that it trains in.
        loss: From a batch to a scalar, in nats per prediction.
        batches: ``batches[step]``, with ``batch_size * gradient_accumulation`` rows.
        settings: The recipe's ``train`` section.
        optimizers: Makes the optimizers of the model's parameters; ``None`` for what ``settings.optimizer`` names, with
            masters as ``settings.masters`` says.
        schedule: Makes the schedule once the optimizer exists; ``None`` for a float model.
        checkpoint: Where the state goes every ``checkpoint_every`` steps; ``None`` keeps none.
        identity: What a checkpoint must agree on to be resumed.
        on_step: Called with the number of steps taken and their figures, on every process.
        steady: Train without dropout and whatever else draws random numbers, and with the norms' running statistics as
            they are: what the loss compares with, a float model in evaluation mode, has neither noise nor statistics of
            the batch.
        settles: What is done about oscillating weights after each step.
        moving: What moves its weights, once it runs.
        silenced: Modules that are in evaluation mode while the rest trains, since they would add noise.
        monitor: Looks, in each step, at the weights that its loss is of; what it sees is among the step's figures.
    """

    model: nn.Module
    loss: Loss
    batches: Batches | ExampleBatches
    settings: TrainSection
    optimizers: Optimizers | None = None
    schedule: Callable[[Optimizer], Schedule] | None = None
    checkpoint: Path | None = None
    identity: str = ""
    on_step: OnStep = field(default=lambda _step, _figures: None)
    steady: bool = False
    settles: Dampening | Freezing | None = None
    monitor: Monitor | None = None
    silenced: list[str] = field(default_factory=list, init=False)
    moving: Moving | None = field(default=None, init=False)
    _skipped_in_a_row: int = field(default=0, init=False)

    def run(self) -> nn.Module:
        """Train to the end, from the checkpoint if there is one, and return the model in evaluation mode."""
        own = None if self.optimizers is None else self.optimizers(self.model, self.settings)
        moving = self.moving = Moving(self.model, self.settings, own)
        schedule = self.schedule(moving.owner) if self.schedule else None
        step = self._resume(schedule)
        if self.steady and step < self.settings.steps:
            self._silence(step)
        while step < self.settings.steps:
            figures = self._take_step(step)
            step += 1
            if self.settles is not None:
                self.settles.step(step)
                moving.masters.follow()
            if schedule is not None:
                schedule.step()
            else:
                share_ranges(self.model)
            # Before the state is kept: what it measures is measured again if it was cut off.
            self.on_step(step, figures)
            if step % self.settings.checkpoint_every == 0 or step == self.settings.steps:
                self._check_scales(step - 1, finite_scales(self.model).cpu().tolist())
                self._save(step, schedule)
        return self.model.eval()

    def _take_step(self, step: int) -> dict[str, float]:
        """One step. It waits for the device once, to read all that is to be known of it."""
        self._training_mode()
        moving, device = self.moving, device_of(self.model)
        rate = moving.set_rates(rate_factor(self.settings, step))
        micro_batches = chunks(share(self.batches[step]), max(1, self.settings.gradient_accumulation // count()))
        known = {} if self.monitor is None else {"seen": self.monitor.look()}
        known |= {"sizes": moving.sizes()} if self.schedule else {}
        found = read_together(known | self._gradients(step, micro_batches), device)
        while moving.tries_again(found):
            found = read_together(known | self._gradients(step, micro_batches), device)
        self._check_scales(step - 1, found["finite"])
        loss = found["loss"][0]
        skipped = not math.isfinite(loss) or overflows(found)
        if skipped:
            self._skip_or_stop(step, loss, micro_batches)
        else:
            moving.step(found.get("sizes"))
        moving.forget_gradients()
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        figures = {"loss": loss, "gradient_norm": found["norm"][0], "learning_rate": rate}
        figures |= Monitor.named(found.get("seen", ()))
        return {**figures, "skipped": 1} if skipped else figures

    def _gradients(self, step: int, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Forward and backward of a step; returns what ``Moving.take_gradients`` does, and the loss."""
        device = device_of(self.model)
        losses = torch.zeros((), dtype=torch.float64, device=device)
        with explained(self.model, f"step {step}", _LESS_MEMORY):
            for index, micro_batch in enumerate(micro_batches):
                with without_sync(self.loss, last=index + 1 == len(micro_batches)):
                    loss = self.loss(to_device(micro_batch, device)) / len(micro_batches)
                    self.moving.backward(loss)
                losses += loss.detach().to(device)
        return {"loss": mean(losses), **self.moving.take_gradients()}

    def _check_scales(self, step: int, finite: list[float]) -> None:
        if finite[0] < 1:
            broken = scale_not_finite(self.model)
            raise UserError(f"Scales must stay finite, but {broken} is not after step {step}; {self._advice()}")

    def _skip_or_stop(self, step: int, loss: float, micro_batches: list[Batch]) -> None:
        """A batch whose loss or gradient is not finite is left out where the recipe says so, but not many in a row."""
        if self.settings.non_finite == "skip" and self._skipped_in_a_row < _MOST_SKIPPED:
            return
        what = (
            f"The loss must stay finite, but is {loss}"
            if not math.isfinite(loss)
            else "Gradients must stay finite, but are not,"
        )
        device = device_of(self.model)
        first = first_not_finite(self.model, lambda: [self.loss(to_device(batch, device)) for batch in micro_batches])
        where = f"; the first that is not finite is {first}" if first else ""
        skipped = f", after {self._skipped_in_a_row} batches that were skipped" if self._skipped_in_a_row else ""
        raise UserError(f"{what} at step {step}{skipped}{where}; {self._advice()}")

    def _advice(self) -> str:
        kept = None if self.checkpoint is None else load_training(self.checkpoint)
        last = "" if kept is None else f"--resume goes on from step {kept.facts['step']}, kept in {kept.path}"
        return " or ".join(["lower train.learning_rate", "set train.non_finite: skip"]) + (
            f"; {last}." if last else "."
        )

    def _training_mode(self) -> None:
        self.model.train()
        for module in self.model.modules() if self.steady else []:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        for name in self.silenced:
            self.model.get_submodule(name).training = False  # not of the modules inside

    def _silence(self, step: int) -> None:
        """Find what adds noise, on one row of the batch of ``step``."""
        remove_dropout(self.model)
        self._training_mode()
        row = to_device(rows_of(share(self.batches[step]), 0, 1), device_of(self.model))
        self.silenced = find_noise(self.model, lambda: self.loss(row))

    def _save(self, step: int, schedule: Schedule | None) -> None:
        if self.checkpoint is None:
            return
        facts: dict[str, Any] = {
            "step": step,
            "identity": self.identity,
            "skipped_in_a_row": self._skipped_in_a_row,
            "schedule": schedule.state_dict() if schedule else None,
            "settles": self.settles.state_dict() if self.settles else None,
            **self.moving.state_dict(),
        }
        if self.monitor is not None and not is_sharded(self.model):
            facts["monitor"] = self.monitor.state_dict()
        save_training(self.checkpoint, facts, self.model, self.moving.optimizers, generator_states())

    def _resume(self, schedule: Schedule | None) -> int:
        state = None if self.checkpoint is None else load_training(self.checkpoint)
        if state is None:
            seed_generators(self.settings.seed)
            return 0
        if state.facts["identity"] != self.identity:
            raise UserError(
                f"{state.path} must belong to this recipe, model and data, but was written for others; "
                "choose another --output, or --restart."
            )
        state.restore(self.model, self.moving.optimizers, random=True)
        if schedule is not None:
            schedule.load_state_dict(state.facts["schedule"])
        if self.settles is not None:
            self.settles.load_state_dict(state.facts["settles"])
        if self.monitor is not None:
            self.monitor.load_state_dict(state.facts.get("monitor", {}))
        self.moving.load_state_dict(state.facts)
        self._skipped_in_a_row = state.facts.get("skipped_in_a_row", 0)
        return state.facts["step"]
