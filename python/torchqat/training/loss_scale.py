"""What the loss of a float16 model is multiplied by, so that small gradients do not vanish (arXiv:1710.03740)."""

from typing import Any

import torch
from torch import nn

_FIRST = 2.0**16
_PATIENCE = 2000  # steps, as of torch.amp.GradScaler


class LossScale:
    """A power of two: half as large where gradients overflow, whose step is then tried again, and twice after a while.

    Args:
        model: Of others than float16 it is 1 and stays so.

    Attributes:
        factor: The scale.
    """

    def __init__(self, model: nn.Module):
        needed = any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters())
        self._most = _FIRST if needed else 1.0
        self.factor, self._steps = self._most, 0

    @torch.no_grad()
    def divide(self, parameters: list[nn.Parameter]) -> None:
        """The gradients of a loss that was multiplied."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.factor)

    def lower(self) -> bool:
        """Gradients overflowed; returns whether a lower scale is left to try."""
        if self.factor == 1.0:
            return False
        self.factor, self._steps = self.factor / 2, 0
        return True

    def step(self) -> None:
        """Gradients were finite."""
        self._steps += 1
        if self.factor < self._most and self._steps % _PATIENCE == 0:
            self.factor *= 2

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self._steps = state["factor"], state["steps"]
