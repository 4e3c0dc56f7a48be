"""The model at hand: as transformers built it, and as torchqat has it now."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torchqat
from torch import Tensor, nn
from torchqat.layers.prepared import quant_layers

from model_zoo.recipes import ATTEMPTS, Planned, planned, without
from model_zoo.watch import Watch


class Subject:
    """A model on its way through the steps.

    Attributes:
        plain: The float model; nothing changes it.
        data: Batches of arguments.
        folder: For what is written.
        multiplied: Names of matrices, of 2 or more dimensions, that a forward of ``plain`` multiplies with.
        planned: What torchqat plans; from ``plan`` on.
        rules: What it was left to by now.
        model: What torchqat works on.
        exported: What was written, by format.
    """

    planned: Planned

    def __init__(self, plain: nn.Module, data: list[dict[str, Tensor]], folder: Path):
        self.plain, self.data, self.folder = plain, data, folder
        with torch.no_grad(), Watch(plain) as watch:
            plain(**data[0])
        self.multiplied = watch.multiplied
        self.rules: dict[str, str] = {}
        self.model = copy.deepcopy(plain)
        self.exported: dict[str, nn.Module] = {}

    def plan(self) -> None:
        self.planned = planned(self.model)
        self.rules = self.planned.rules

    def prepared(self, rules: dict[str, str], method: str = "gptq") -> nn.Module:
        """A new model under these rules."""
        return torchqat.prepare(copy.deepcopy(self.plain), self.planned.recipe(rules, method))

    def leaving_out(self, action: Callable[[], object]) -> str:
        """Do it; layers that torchqat refuses in it by name are left in floating point, as it advises.

        Returns:
            What it said first, if anything.

        Raises:
            UserError: It names no layer, or the last one.
        """
        first = ""
        for _ in range(ATTEMPTS):
            try:
                action()
                return first
            except torchqat.UserError as error:
                rules = without(self.planned.plan, self.rules, str(error))
                if rules is None:
                    raise
                first = first or str(error)
                self.rules, self.model = rules, self.prepared(rules)
        raise AssertionError(f"{ATTEMPTS} layers in a row were refused, the first by: {first}")

    # -- names -----------------------------------------------------------------------------------------------------------

    def layers(self) -> list[tuple[str, nn.Module]]:
        return quant_layers(self.model)

    def weight_of(self, layer: str) -> str:
        """The parameter that is a layer's weight: some layers are a parameter, and are called like it."""
        return layer if layer in self._parameters() else f"{layer}.weight"

    def covered(self) -> set[str]:
        """Parameters that are quantized."""
        left = self.planned.plan.layers
        return {self.weight_of(layer.name) for layer in left if layer.weight and self.rules.get(layer.name) != "float"}

    def heads(self) -> set[str]:
        """Parameters of output heads, which are quantized where a rule has their full name alone."""
        head = self.plain.get_output_embeddings() if hasattr(self.plain, "get_output_embeddings") else None
        own = {id(p) for p in head.parameters()} if head is not None else set()
        return {name for name, p in self.plain.named_parameters(remove_duplicate=False) if id(p) in own}

    def shares(self) -> dict[str, float]:
        """Of all parameters and of the multiplied weights, output heads aside, what is quantized."""
        sizes = {name: p.numel() for name, p in self.plain.named_parameters()}
        covered, body = self.covered(), self.multiplied - self.heads()
        return {
            "parameters": _sum(sizes, covered) / sum(sizes.values()),
            "multiplied": _sum(sizes, covered & body) / max(1, _sum(sizes, body)),
        }

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.plain.named_parameters(remove_duplicate=False))


def _sum(sizes: dict[str, int], names: set[str]) -> int:
    return sum(size for name, size in sizes.items() if name in names)
