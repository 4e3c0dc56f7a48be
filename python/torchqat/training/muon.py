"""Muon: torch's, and where bfloat16 is emulated the same in float32."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchqat.precision import products


class Muon(torch.optim.Muon):
    """``torch.optim.Muon``, which orthogonalizes steps in bfloat16 whatever the device.

    On a processor that emulates bfloat16 that takes ten times as long as forward and backward, so that there the products
    are of float32. State and arguments are torch's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        devices = {p.device for group in self.param_groups for p in group["params"]}
        if all(products(device, torch.bfloat16).multiplied for device in devices):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict) -> None:
        gradient, momentum, rate = parameter.grad, group["momentum"], float(group["lr"])
        if gradient.dim() != 2:
            raise ValueError(f"Muon needs matrices, but a gradient has {gradient.dim()} dimensions.")
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        update = orthogonalized(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, cols = parameter.shape
        like_adamw = group["adjust_lr_fn"] == "match_rms_adamw"
        size = 0.2 * math.sqrt(max(rows, cols)) if like_adamw else math.sqrt(max(1, rows / cols))
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(update, alpha=-rate * size)


def orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """``matrix`` with its singular values drawn near 1 by Newton-Schulz, in its own dtype (Jordan et al., Muon, 2024)."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
