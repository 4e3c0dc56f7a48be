"""What moves the weights of a model: its optimizers, with masters, a scale of the loss and rates of scales."""

import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchqat._library import TrainSection
from torchqat.layers.sharded import whole
from torchqat.training.finite import finite_scales
from torchqat.training.loss_scale import LossScale
from torchqat.training.masters import Masters
from torchqat.training.optimizers import fine_tuning_optimizers, is_scale, owner_of_scales, set_rates
from torchqat.training.relative_rates import multiply_relative_rates


class Moving:
    """Takes the gradients of a model and moves its weights.

    Args:
        model: What trains.
        settings: The recipe's ``train`` section.
        optimizers: Of the model's own parameters; where ``None``, those that ``settings`` name, with their masters.

    Attributes:
        optimizers: Those.
        owner: The one that moves learned scales.
        masters: Of 16-bit weights.
        loss_scale: What the loss of a float16 model is multiplied by.
    """

    def __init__(self, model: nn.Module, settings: TrainSection, optimizers: list[Optimizer] | None):
        self.model, self.settings = model, settings
        has_masters = optimizers is None and settings.masters == "float32"
        self.masters = Masters(model if has_masters else nn.Module())
        self.loss_scale = LossScale(model)
        self.optimizers = optimizers or fine_tuning_optimizers(model, settings, self.masters)
        self.owner = owner_of_scales(self.optimizers, model)

    def set_rates(self, factor: float) -> float:
        """Those of a step, as shares of their first; returns the first optimizer's."""
        set_rates(self.optimizers, factor)
        return self.optimizers[0].param_groups[0]["initial_lr"] * factor

    def sizes(self) -> Tensor:
        """Of learned scales, which ``step`` has to be told."""
        return multiply_relative_rates(self.owner).sums()

    def backward(self, loss: Tensor) -> None:
        (loss * self.loss_scale.factor).backward()

    def take_gradients(self) -> dict[str, Tensor]:
        """Clip them; returns their norm and whether scales and their gradients are finite, on the device."""
        self.masters.take_gradients()
        named = list(self.model.named_parameters())
        weights = [self.masters.of(weight) for name, weight in named if not is_scale(name)]
        self.loss_scale.divide(weights + [scale for name, scale in named if is_scale(name)])
        norm = whole(nn.utils.clip_grad_norm_(weights, self.settings.gradient_clip or math.inf))
        return {"norm": norm, "finite": finite_scales(self.model)}

    def tries_again(self, found: dict[str, list[float]]) -> bool:
        """Whether gradients overflowed and may not with a lower scale of the loss, which is then in force."""
        if not overflows(found) or not self.loss_scale.lower():
            return False
        self.forget_gradients()
        return True

    def step(self, sizes: list[float] | None) -> None:
        self.loss_scale.step()
        if sizes is not None:
            multiply_relative_rates(self.owner).give(sizes)
        for optimizer in self.optimizers:
            optimizer.step()
        self.masters.give()

    def forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What the states of the optimizers do not have."""
        masters = self.masters.state_dict()
        return {"loss_scale": self.loss_scale.state_dict()} | ({"masters": masters} if masters else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss_scale.load_state_dict(state["loss_scale"])
        self.masters.load_state_dict(state.get("masters", {}))


def overflows(found: dict[str, list[float]]) -> bool:
    """Whether gradients are not finite, though the loss is."""
    return math.isfinite(found["loss"][0]) and not (math.isfinite(found["norm"][0]) and found["finite"][1] == 1)
