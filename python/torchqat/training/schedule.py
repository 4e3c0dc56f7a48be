"""``Schedule``: moves the widths of a prepared model along its recipe's stages."""

import logging
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchqat._library import BitSchedule, Recipe
from torchqat.errors import UserError
from torchqat.layers.adapters import check_adapters
from torchqat.layers.cache_choice import CacheChoice, settle
from torchqat.layers.kept_weight import round_together
from torchqat.layers.prepared import quant_layers, require_prepared
from torchqat.layers.sharded import is_sharded
from torchqat.layers.step import count_steps, counting, follow
from torchqat.model.calls import calls_note
from torchqat.model.noted import check_still_quantized, misfit_note, rangeless_note, uncalibrated_note
from torchqat.model.planned import check_same_rules
from torchqat.training.optimizers import scales_note
from torchqat.training.relative_rates import multiply_relative_rates
from torchqat.training.scales_apart import ScalesApart
from torchqat.training.spread import check_gathered, share_ranges
from torchqat.training.steps_taken import StepsTaken
from torchqat.training.trainable import check_trainable


class Schedule:
    """Bit-widths over a run, as a pure function of the step.

    Call ``step()`` after each ``optimizer.step()``, on every process. When a width drops, scales are re-derived from the
    master weights and what the optimizer keeps of learned ones begins anew, since it belongs to the old grid. The step lives
    in the model's ``state_dict`` as ``qat_step``, beside the scales and the widths that these belong to: a schedule begins
    at the step that is there, whether the state was loaded before or after. A model has one schedule, the last that was
    made for it. Processes that hold parts of a model (FSDP2), or replicas (DDP), share in each step what they have seen of
    inputs whose ranges follow.

    Args:
        model: A prepared model.
        recipe: Its recipe.
        total_steps: Optimizer steps of the whole run; percentages refer to it.
        optimizer: The optimizer to tell; optional. The rates of learned scales in it are multiplied by their size. Where its
            groups are not those of ``parameter_groups``, scales among weights move as if they were: at the recipe's
            ``scale_learning_rate``, which goes along with that of their group, and without decay. A group that says
            ``relative: False`` is left as it is.
        say: Called with a sentence that users should see: what ``train.weight_cache: auto`` decided on a GPU, that learned
            scales were among weights or in no group, or that weights were assigned since scales were chosen for them. By
            default it goes to the logger ``torchqat``.

    Attributes:
        weight_cache: What ``train.weight_cache: auto`` decided, after the first step; ``None`` before, and where the recipe
            decides.

    Raises:
        UserError: The model is not prepared, or no more in one of its layers, or by a recipe with other layers,
            ``total_steps`` is negative, no whole number or ends before the last stage begins, ``optimizer`` is none
            or has no rate of a group for learned scales, adapters of peft act beside the rounded weights, parameters have
            another shape outside of the forward (DeepSpeed ZeRO-3, FSDP1), or FSDP2 gathers weights in another dtype.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        total_steps: int,
        optimizer: Optimizer | None = None,
        say: Callable[[str], None] | None = None,
    ):
        if not isinstance(total_steps, numbers.Integral):
            raise UserError(f"total_steps must be a whole number of optimizer steps, but is {total_steps!r}.")
        if total_steps < 0:
            raise UserError(f"total_steps must not be negative, but is {total_steps}.")
        require_prepared(model)
        check_still_quantized(model)
        check_same_rules(model, recipe)
        check_trainable(model)
        check_gathered(model)
        for _, layer in quant_layers(model):
            layer.replicated = False  # which was of another training
        self._say = say or logging.getLogger("torchqat").warning
        self._steps_taken: StepsTaken | None = None
        self._recipe = recipe
        self.model, self.optimizer = model, optimizer
        self.weight_cache: CacheChoice | None = None
        self.bits = BitSchedule(recipe, total_steps)
        last = self.bits.boundaries()[-1]
        if last > total_steps:
            raise UserError(
                f"total_steps must reach the last stage of the schedule, so that what is exported is trained, but is "
                f"{total_steps}, and that stage begins with step {last}."
            )
        if not counting(model):
            count_steps(model)
        self._counters = counting(model)
        self._saw_calls = self._is_replaced = False
        self._step = int(self._counters[0].qat_step)  # the same on the host: to read it would wait for the device
        for counter in self._counters:
            follow(counter, self._restore, self._let_go)
        self._apply(method="rtn" if recipe.initialize.rounding == "rtn" else "mse")
        if note := misfit_note(model):
            self._say(note)

    @property
    def optimizer(self) -> Optimizer | None:
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer | None) -> None:
        self._optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's and Lightning's wrap torch's
        if self._optimizer is not None and not hasattr(self._optimizer, "param_groups"):
            what = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else f"a {type(optimizer).__name__}"
            raise UserError(f"optimizer must be one that was made of parameters, but is {what}.")
        if self._steps_taken is not None:
            self._steps_taken.end()
        self._steps_taken = None if self._optimizer is None else StepsTaken(optimizer, self._optimizer)
        if self._optimizer is not None:
            apart = ScalesApart(self._optimizer, self.model, self._recipe.train.scale_learning_rate)
            multiply_relative_rates(self._optimizer).apart = apart
            if note := scales_note(self.model, self._optimizer, apart.names):
                self._say(note)

    @property
    def current_step(self) -> int:
        """Optimizer steps taken so far."""
        return self._step

    @property
    def stage(self) -> int:
        """Index of the stage in force."""
        return self.bits.stage_at(self.current_step)

    @property
    def weight_bits(self) -> int:
        """Bits of the weights in force, the most of any layer; 0 where only inputs are quantized."""
        layers = [layer for _, layer in quant_layers(self.model) if layer.weight_spec is not None]
        return max((layer.weight_bits for layer in layers), default=0)

    @property
    def is_at_exported_widths(self) -> bool:
        """Whether every layer is rounded as it will be exported."""
        return all(
            (layer.weight_spec is None or layer.weight_bits == layer.weight_spec.bits)
            and (layer.input_spec is None or layer.input_bits == layer.input_spec.bits)
            for _, layer in quant_layers(self.model)
        )

    def step(self) -> bool:
        """Count one optimizer step, and round the weights that layers keep; returns whether widths changed. The first
        step says which layer the forward before it did not call, though it called that layer's neighbours, and whether
        ``calibrate`` was left out where the recipe's ``initialize``, inputs or caches need it. A batch after which
        Accelerate's optimizer takes no step, since gradients are accumulated, does not count.
        """
        if self._steps_taken is not None and self._steps_taken.accumulating:
            return False
        before = self.stage
        if self._steps_taken is not None and (note := self._steps_taken.count()):
            self._say(note)
        if not self._saw_calls:
            self._saw_calls = True
            check_gathered(self.model)
            check_adapters(self.model)  # of peft, which may have added some since
            notes = [calls_note(self.model, "before the first step")]
            notes += [uncalibrated_note(self.model), rangeless_note(self.model)]
            for note in filter(None, notes):
                self._say(note)
        # Nothing else keeps those of shards alike, and DDP knows of what the first process saw alone.
        if is_sharded(self.model) or any(layer.replicated for _, layer in quant_layers(self.model)):
            share_ranges(self.model)  # before the last of them stands still
        self._go_to(self._step + 1)
        self._apply(method="mse")
        layers = [layer for _, layer in quant_layers(self.model)]
        for layer in layers:
            layer.stepped_weight.note(layer)
        choice = settle(layers)
        if choice is not None:
            self.weight_cache = choice
            if choice.sentence:
                self._say(choice.sentence)
        round_together(layers)
        if self._optimizer is not None:
            multiply_relative_rates(self._optimizer).send()
        return self.stage != before

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, for checkpoints."""
        return {"step": self.current_step, "total_steps": self.bits.total_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the step of ``state``. The scales of that step are the model's, from its own ``state_dict``; those of
        another width are derived anew.

        Raises:
            UserError: ``state`` belongs to a run of another length, whose percentages meant other steps, or is none of a
                schedule.
        """
        _check_state(state)
        if state["total_steps"] != self.bits.total_steps:
            raise UserError(
                f"The schedule must have the length it was saved with, {state['total_steps']} steps, "
                f"but has {self.bits.total_steps}."
            )
        self._go_to(state["step"])
        self._apply(method="mse")

    def finish(self) -> None:
        """Move to the exported widths, for a run that stopped early."""
        self._go_to(max(self._step, self.bits.total_steps))
        self._apply(method="mse")

    def _go_to(self, step: int) -> None:
        if self._is_replaced:
            raise UserError("A model must have one Schedule, the last that was made for it, but this is another.")
        self._step = step
        for counter in self._counters:
            counter.qat_step.fill_(step)

    def _restore(self) -> None:
        """The step that was loaded is in force, and so are the widths and scales beside it."""
        self._step = int(self._counters[0].qat_step)
        self._apply(method="mse")

    def _let_go(self) -> None:
        self._is_replaced = True

    def _apply(self, method: str) -> None:
        step = self.current_step
        for _, layer in quant_layers(self.model):
            changed = layer.set_bits(
                self.bits.weight_bits(step, layer.weight_spec.bits) if layer.weight_spec else 0,
                self.bits.input_bits(step, layer.input_spec.bits) if layer.input_spec else 0,
                method,
            )
            layer.observing = self.bits.observing(step)
            layer.forget_weight()  # an optimizer may have written through .data, which no version shows
            if self.optimizer is not None:
                for name in changed:
                    _reset_state(self.optimizer, getattr(layer, name))


def _check_state(state: Any) -> None:
    found = state if isinstance(state, Mapping) else {}
    for key in ("step", "total_steps"):
        if not isinstance(found.get(key), numbers.Integral) or found[key] < 0:
            what = f"has {found[key]!r} there" if key in found else f"is {_shown(state)}"
            raise UserError(
                f"state must be what state_dict of a Schedule gives, with a whole number from 0 on as {key}, but {what}."
            )


def _shown(state: Any) -> str:
    if not isinstance(state, Mapping):
        return type(state).__name__
    return f"a {type(state).__name__} of {', '.join(map(str, state))}" if state else f"an empty {type(state).__name__}"


# What a state that an optimizer has just made begins with, beside tensors of zeros.
_BEGINNINGS = {"step": 0, "mu_product": 1}


@torch.no_grad()
def _reset_state(optimizer: Optimizer, parameter: Tensor | None) -> None:
    """Let what ``optimizer`` keeps of ``parameter`` begin anew, whatever the optimizer.

    All of it: moments that begin at zero, but late in the count of steps by which Adam corrects for that, would make steps
    several times too long. In place, so that checkpoints find what they expect.
    """
    state = optimizer.state.get(parameter, {})
    moments = [value for value in state.values() if torch.is_tensor(value) and value.shape == parameter.shape]
    if not all(moment.is_floating_point() for moment in moments):
        del optimizer.state[parameter]  # packed to codes, of which 0 need not be zero: the optimizer makes them anew
        return
    for moment in moments:
        moment.zero_()
    for key in _BEGINNINGS.keys() & state.keys():
        if torch.is_tensor(state[key]):
            state[key].fill_(_BEGINNINGS[key])
        else:
            state[key] = _BEGINNINGS[key]
