"""Memory that ran out: where, and what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from torchqat.errors import UserError

_SIGNS = ("can't allocate memory", "out of memory", "bad_alloc")


@contextmanager
def explained(model: nn.Module, what: str, advice: str) -> Iterator[None]:
    """Turns memory that runs out in the block into a sentence.

    Args:
        model: Whose layer is named, if it was in one.
        what: What was being done.
        advice: What the user could lower.

    Raises:
        UserError: Memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        layer = _layer_of(error, model)
        place = f" in {layer}" if layer else ""
        raise UserError(f"Memory must suffice for {what}, but ran out{place}; {advice}.") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the host or of a device had run out; torch has a class of its own only for the latter."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in _SIGNS)


def _layer_of(error: BaseException, model: nn.Module) -> str:
    """The name of the innermost module of ``model`` whose forward was running."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
