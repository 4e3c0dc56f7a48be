"""``Schedule``: moves the widths of a prepared model along its recipe's stages."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from torchqat._library import BitSchedule, Recipe
from torchqat.errors import UserError
from torchqat.prepare import quant_layers, require_prepared


class Schedule:
    """Bit-widths over a run, as a pure function of the step.

    Call ``step()`` after each ``optimizer.step()``. When a width drops, scales are re-derived from the master weights and
    the optimizer's moments of learned scales are cleared, since they belong to the old grid. The step lives in the
    model's ``state_dict`` as ``qat_step``, beside the scales.

    Args:
        model: A prepared model.
        recipe: Its recipe.
        total_steps: Optimizer steps of the whole run; percentages refer to it.
        optimizer: The optimizer whose moments to clear; optional.

    Raises:
        UserError: The model is not prepared, or ``total_steps`` is negative.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, total_steps: int, optimizer: Optimizer | None = None):
        if total_steps < 0:
            raise UserError(f"total_steps must not be negative, but is {total_steps}.")
        require_prepared(model)
        self.model, self.optimizer = model, optimizer
        self.bits = BitSchedule(recipe, total_steps)
        device = next(model.parameters()).device
        if "qat_step" not in dict(model.named_buffers()):
            model.register_buffer("qat_step", torch.zeros((), dtype=torch.int64, device=device))
        self._hook = model.register_load_state_dict_post_hook(lambda *_: self._restore())
        self._apply(method="rtn" if recipe.initialize.rounding == "rtn" else "mse")

    @property
    def current_step(self) -> int:
        """Optimizer steps taken so far."""
        return int(self.model.qat_step)

    @property
    def stage(self) -> int:
        """Index of the stage in force."""
        return self.bits.stage_at(self.current_step)

    @property
    def weight_bits(self) -> int:
        """Bits of the weights in force, the most of any layer; 0 where only inputs are quantized."""
        layers = [layer for _, layer in quant_layers(self.model) if layer.weight_spec is not None]
        return max((layer.weight_bits for layer in layers), default=0)

    def step(self) -> bool:
        """Count one optimizer step; returns whether widths changed."""
        before = self.stage
        self.model.qat_step += 1
        self._apply(method="mse")
        return self.stage != before

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.current_step, "total_steps": self.bits.total_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the step of ``state``; the scales of that step are the model's, from its own ``state_dict``.

        Raises:
            UserError: ``state`` belongs to a run of another length, whose percentages meant other steps.
        """
        if state["total_steps"] != self.bits.total_steps:
            raise UserError(
                f"The schedule must have the length it was saved with, {state['total_steps']} steps, "
                f"but has {self.bits.total_steps}."
            )
        self.model.qat_step.fill_(state["step"])
        self._restore()

    def finish(self) -> None:
        """Move to the exported widths, for a run that stopped early."""
        self.model.qat_step.fill_(max(self.current_step, self.bits.total_steps))
        self._apply(method="mse")

    def _restore(self) -> None:
        """Widths follow the step; the scales were loaded with it and stay."""
        self._apply(method="mse", derive=False)

    def _apply(self, method: str, derive: bool = True) -> None:
        step = self.current_step
        for _, layer in quant_layers(self.model):
            changed = layer.set_bits(
                self.bits.weight_bits(step, layer.weight_spec.bits) if layer.weight_spec else 0,
                self.bits.input_bits(step, layer.input_spec.bits) if layer.input_spec else 0,
                method,
                derive,
            )
            layer.observing = self.bits.observing(step)
            layer.forget_weight()  # an optimizer may have written through .data, which no version shows
            if changed:
                self._clear_moments(layer)

    def _clear_moments(self, layer: nn.Module) -> None:
        if self.optimizer is None:
            return
        for name in ("weight_scale", "weight_zero_point"):
            state = self.optimizer.state.get(getattr(layer, name, None), {})
            for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
                if torch.is_tensor(state.get(key)):
                    state[key].zero_()
