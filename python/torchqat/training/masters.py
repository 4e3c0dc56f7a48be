"""Float32 masters of weights that a model keeps in fewer bits (Micikevicius et al. 2017, arXiv:1710.03740)."""

from typing import Any

import torch
from torch import Tensor, nn

_SHORT = (torch.bfloat16, torch.float16)


class Masters:
    """What the optimizer moves in place of a model's weights of 16 bits, which are their masters, rounded.

    An update below 2^-9 of a weight of bfloat16 would leave that as it is. Scales are float32 and need no master.

    Args:
        model: Every parameter of it that trains and has 16 bits gets a master, as it is now.
    """

    def __init__(self, model: nn.Module):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dtype in _SHORT}
        self._weights = trained
        self._masters = {name: nn.Parameter(weight.detach().float()) for name, weight in trained.items()}
        self._of = {id(weight): self._masters[name] for name, weight in trained.items()}

    def __len__(self) -> int:
        return len(self._masters)

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The master of ``parameter``, or itself where it has none."""
        return self._of.get(id(parameter), parameter)

    def instead(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups with masters in the place of what they are masters of."""
        return [{**group, "params": [self.of(parameter) for parameter in group["params"]]} for group in groups]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Those of the weights, which give them up one after the other."""
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self._masters[name].grad = weight.grad.float()
                weight.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """Their values, rounded, to the weights."""
        if self._weights:
            torch._foreach_copy_(list(self._weights.values()), list(self._masters.values()))

    @torch.no_grad()
    def follow(self) -> None:
        """Take over weights that something else than ``give`` has written; of all others, the bits below stay."""
        for name, weight in self._weights.items():
            master = self._masters[name]
            master.copy_(torch.where(master.to(weight.dtype) == weight, master, weight.float()))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: master.detach() for name, master in self._masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, master in self._masters.items():
            master.copy_(state[name])
