"""Instances of classes that are made while a program runs: copied and pickled by how their class is made."""

from collections.abc import Callable
from typing import Any

from torch import nn


def reduce_made(module: nn.Module, make: Callable[[type], type], kind: type, protocol: int) -> tuple[Any, ...]:
    """What ``__reduce_ex__`` of ``module``, whose class is ``make(kind)``, returns.

    Args:
        module: The instance.
        make: Found by its name in its own module; gives the same class each time.
        kind: A class that is found by its name.
        protocol: As of ``__reduce_ex__``.
    """
    _, _, *rest = kind.__reduce_ex__(module, max(2, protocol))
    return _blank, (make, kind), *rest


def _blank(make: Callable[[type], type], kind: type) -> nn.Module:
    made = make(kind)
    return made.__new__(made)
