"""Weights whose codes keep moving to and fro: how often they do, and what can be done about it.

A straight-through gradient pushes a weight near the border of two levels over it and back, so that its code at the end is
accidental (Nagel et al. 2022, arXiv:2203.11086). numerics.md (30) to (32).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchqat._library import OscillationSection
from torchqat.errors import first_of
from torchqat.layers.prepared import quant_layers
from torchqat.layers.quant_layer import QuantLayer
from torchqat.ops import dequantize

# Share of a new observation in a frequency, and in a running average of codes: the paper's.
MOMENTUM = 0.01


class Moves:
    """How often each code moves against its last move, as a running average.

    Args:
        codes: int8, as they are now.

    Attributes:
        codes: As they were last.
        direction: int8, the sign of each code's last move.
        frequency: float32.
    """

    def __init__(self, codes: Tensor):
        self.codes = codes
        self.direction = torch.zeros_like(codes)
        self.frequency = torch.zeros(codes.shape, device=codes.device)

    def update(self, codes: Tensor) -> Tensor:
        """Take the codes after a step; returns which of them moved."""
        direction = torch.sign(codes.short() - self.codes.short()).to(torch.int8)
        moved = direction != 0
        against = moved & (direction == -self.direction)
        self.frequency.mul_(1 - MOMENTUM).add_(against.float(), alpha=MOMENTUM)
        self.direction = torch.where(moved, direction, self.direction)
        self.codes = codes
        return moved

    def state_dict(self) -> dict[str, Tensor]:
        """Its attributes, by names that begin with ``moves.``."""
        return {f"moves.{name}": value for name, value in vars(self).items()}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Moves":
        """What ``state_dict`` gave, among others."""
        found = cls(state["moves.codes"])
        found.direction, found.frequency = state["moves.direction"], state["moves.frequency"]
        return found


class Dampening:
    """Draws every weight a share of the way to its nearest level after each step, (31): from nothing to all of the share.

    Args:
        model: A prepared model.
        settings: The recipe's ``train.oscillation``.
        total_steps: Of the whole run.
    """

    def __init__(self, model: nn.Module, settings: OscillationSection, total_steps: int):
        self.model, self.share, self.total_steps = model, settings.dampening, total_steps

    @torch.no_grad()
    def step(self, step: int) -> None:
        """After ``step`` optimizer steps."""
        share = self.share * 0.5 * (1.0 - math.cos(math.pi * step / max(1, self.total_steps)))
        for _, layer in _moving(self.model):
            master, rounded = layer.master, layer.quantized_weight()
            inside = (master - rounded).abs() <= _half_steps(layer)  # what is clipped has no level to go to
            layer.set_master(torch.where(inside, master + share * (rounded - master), master))
            layer.forget_weight()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Freezing:
    """Holds a weight at the level that it has been at on average, once it oscillates more often than the threshold, (32).

    Takes 11 bytes a weight. A change of a layer's width frees its weights.

    Args:
        model: A prepared model.
        settings: The recipe's ``train.oscillation``.
    """

    def __init__(self, model: nn.Module, settings: OscillationSection):
        self.model, self.threshold = model, settings.threshold
        self._layers: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self, step: int) -> None:
        """After ``step`` optimizer steps."""
        for name, layer in _moving(self.model):
            kept = self._layers.get(name)
            if kept is None or kept["bits"] != layer.weight_bits:
                codes = layer.codes()
                still = torch.zeros_like(codes, dtype=torch.bool)
                average = codes.float()
                self._layers[name] = {
                    "bits": layer.weight_bits, "moves": Moves(codes), "average": average, "frozen": still, "at": codes,
                }  # fmt: skip
                continue
            self._freeze(layer, kept)

    def _freeze(self, layer: QuantLayer, kept: dict[str, Any]) -> None:
        self._hold(layer, kept)
        codes, moves = layer.codes(), kept["moves"]
        moves.update(codes)
        kept["average"].mul_(1 - MOMENTUM).add_(codes.float(), alpha=MOMENTUM)
        new = (moves.frequency > self.threshold) & ~kept["frozen"]
        kept["at"] = torch.where(new, kept["average"].round().to(torch.int8), kept["at"])
        kept["frozen"] |= new
        self._hold(layer, kept)

    @staticmethod
    def _hold(layer: QuantLayer, kept: dict[str, Any]) -> None:
        """In the middle of its cell, wherever the optimizer or a learned scale has moved it.

        Whether there is one is not asked: that would wait for the device.
        """
        level = dequantize(kept["at"], *layer.stored_qparams(), layer.weight_spec.block)
        layer.set_master(torch.where(kept["frozen"], level, layer.master.float()))
        layer.forget_weight()

    @property
    def share(self) -> float:
        """Of weights that are frozen."""
        counts = [(int(kept["frozen"].sum()), kept["frozen"].numel()) for kept in self._layers.values()]
        return sum(n for n, _ in counts) / sum(n for _, n in counts) if counts else 0.0

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: resumed runs end with the same bits."""
        found = {}
        for name, kept in self._layers.items():
            found[name] = {key: value for key, value in kept.items() if key != "moves"} | kept["moves"].state_dict()
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._layers = {}
        layers = dict(quant_layers(self.model))
        for name, found in state.items():
            device = layers[name].weight.device
            kept = on_device_of_layer(found, device)
            self._layers[name] = {**{k: v for k, v in kept.items() if "." not in k}, "moves": Moves.of_state(kept)}


def on_device_of_layer(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The state of a layer on its device: states are read into the host's memory."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in state.items()}


def against_oscillation(
    model: nn.Module, settings: OscillationSection, total_steps: int
) -> Dampening | Freezing | None:
    """What ``settings`` ask for; call its ``step`` after each optimizer step."""
    if settings.method == "dampen":
        return Dampening(model, settings, total_steps)
    return Freezing(model, settings) if settings.method == "freeze" else None


def unsettled_note(model: nn.Module, settings: OscillationSection) -> str:
    """A sentence on layers for which nothing is done, since no one step lies between two of their levels; else empty."""
    specs = [(name, layer.weight_spec) for name, layer in quant_layers(model)]
    names = [name for name, spec in specs if spec is not None and spec.is_named]
    if settings.method == "none" or not names:
        return ""
    return f"train.oscillation is for weights on integer levels, so that {first_of(names)} go without."


def _moving(model: nn.Module) -> list[tuple[str, QuantLayer]]:
    return [(name, layer) for name, layer in quant_layers(model) if layer.on_integer_levels]


def _half_steps(layer: QuantLayer) -> Tensor:
    """Half the distance between two levels, ``[rows, cols]``."""
    scale, _ = layer.stored_qparams()
    ones = torch.ones(layer.matrix_shape, dtype=torch.int8, device=scale.device)
    return dequantize(ones, scale, None, layer.weight_spec.block).abs() * 0.5001
