"""How near two models are that give a number for each example, where others give choices."""

import torch
from torch import Tensor

from torchqat.errors import UserError


def number_distances(found: Tensor, wanted: Tensor) -> Tensor:
    """KL between normal distributions around both, of the variance of what is wanted; float64 ``[n]``, in nats.

    It does not change with the unit that the numbers are in, and is 1/2 where the error is as large as the spread.

    Args:
        found: ``[n]``.
        wanted: ``[n]``, what the float model says.

    Raises:
        UserError: What is wanted is the same everywhere.
    """
    found, wanted = found.double(), wanted.double()
    variance = wanted.var(correction=0)
    if not variance > 0:
        raise UserError(
            "A model of one output is measured by the spread of what the float model says, but that is "
            f"{wanted[0].item():g} for each of {len(wanted)} examples."
        )
    return (found - wanted).square() / (2.0 * variance)


def pairs_ordered_alike(found: Tensor, wanted: Tensor) -> float:
    """The share of pairs of examples, of those that ``wanted`` tells apart, that both order in the same way."""
    ours, theirs = (torch.sign(values[:, None].double() - values.double()) for values in (found, wanted))
    differ = theirs != 0
    return ((ours == theirs) & differ).sum().item() / max(1, differ.sum().item())
