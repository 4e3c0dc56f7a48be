"""How large the inputs of each matrix of a model are, column by column: what importance matrices are made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchqat.errors import UserError
from torchqat.layers.conv1d_of_transformers import QuantConv1D, conv1d_class
from torchqat.layers.experts import ExpertWeights
from torchqat.model.blocks import hooks
from torchqat.model.experts import expert_weights
from torchqat.model.placement import Placed
from torchqat.ptq.calls import moved
from torchqat.ptq.experts import RoutedTokens, knows_structure, routes
from torchqat.ptq.unpadded import unpadded


@dataclass
class SquaredInputs:
    """Of one weight.

    Attributes:
        sums: Of the squares of what each column was multiplied with, float64 ``[matrices, in]``.
        tokens: How many tokens each matrix was multiplied with, int64 ``[matrices]``: of experts, those routed to each.
    """

    sums: Tensor
    tokens: Tensor

    def add(self, matrix: int, given: Tensor) -> None:
        """Tokens ``[..., in]``; those that are not finite are left out."""
        rows = given.detach().flatten(0, -2).double()
        rows = rows[rows.isfinite().all(-1)]
        self.sums[matrix] += rows.square().sum(0).cpu()
        self.tokens[matrix] += len(rows)


@torch.no_grad()
def squared_inputs(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any], placed: Placed
) -> dict[str, SquaredInputs]:
    """What the linear layers and experts of ``model`` are multiplied with when it runs ``batches``, by names of parameters.

    Args:
        model: In floating point or prepared; inputs are seen before they are quantized.
        batches: What ``forward`` takes; padding is left out as calibration does.
        forward: How to run one batch.
        placed: Where.

    Raises:
        UserError: There is no batch, or a module of experts does not compute as transformers' do.
    """
    found: dict[str, SquaredInputs] = {}
    handles = []
    for name, module in model.named_modules():
        if _multiplies(module):
            found[f"{name}.weight"] = squares = _empty(1, _columns(module))
            handles.append(module.register_forward_pre_hook(partial(_seen, squares)))
        elif held := _experts_of(module):
            own = {leaf: _empty(len(w.weight), w.oriented.shape[-1]) for leaf, w in held.items()}
            found.update({f"{name}.{leaf}": squares for leaf, squares in own.items()})
            handles.append(module.register_forward_hook(_Experts(name, held, own)))
    training, count = model.training, 0
    model.eval()
    try:
        with hooks(handles):
            for batch in unpadded(batches):
                forward(model, moved(batch, placed.device))
                count += 1
    finally:
        model.train(training)
    if not count:
        raise UserError("An importance matrix needs at least one calibration batch, but there is none.")
    return found


def _multiplies(module: nn.Module) -> bool:
    kinds = tuple(kind for kind in (nn.Linear, conv1d_class(), QuantConv1D) if kind is not None)
    return isinstance(module, kinds)


def _columns(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else module.nx


def _empty(matrices: int, columns: int) -> SquaredInputs:
    return SquaredInputs(torch.zeros(matrices, columns, dtype=torch.float64), torch.zeros(matrices, dtype=torch.int64))


def _seen(squares: SquaredInputs, _module: nn.Module, args: tuple) -> None:
    squares.add(0, args[0])


def _experts_of(module: nn.Module) -> dict[str, ExpertWeights]:
    found = {leaf: expert_weights(module, leaf) for leaf, p in module._parameters.items() if p is not None}
    return {leaf: weights for leaf, weights in found.items() if weights is not None}


class _Experts:
    """Takes apart what a module of experts is called with: the tokens of each, and what is between its matrices."""

    def __init__(self, name: str, held: dict[str, ExpertWeights], squares: dict[str, SquaredInputs]):
        self._name, self._held, self._squares, self._tried = name, held, squares, False

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> None:
        if len(args) < 3 or not knows_structure(module) or not routes(args[0], args[1]):
            raise UserError(self._refusal)
        given, sent, weights, *_ = args
        tokens = RoutedTokens(module, given.flatten(0, -2), sent.flatten(0, -2))
        if not self._tried and not tokens.computes(given, sent, weights, output):
            raise UserError(self._refusal)
        self._tried = True
        for expert in range(len(next(iter(self._held.values())).weight)):
            places, _ = tokens.of_expert(expert, 0)
            for leaf, weights in self._held.items():
                for part in tokens.inputs(weights, expert, places) if places.numel() else ():
                    self._squares[leaf].add(expert, part)

    @property
    def _refusal(self) -> str:
        return f"An importance matrix needs experts that compute as transformers' do, but {self._name} does not."
