"""Batches as users give them to a function: whether they are such, found out before a model meets them."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from inspect import GEN_CLOSED, getgeneratorstate
from os import PathLike
from typing import Any

from torch import Tensor

from torchqat.data.batch import Batch
from torchqat.errors import UserError

_TEXT = (str, bytes, PathLike)


def check_batches(batches: Any, rows_are_batches: bool = False) -> None:
    """Whether ``batches`` are several, as a list is, and no single one.

    Args:
        batches: As a function was given them.
        rows_are_batches: The rows of one tensor may be meant, as by a ``forward`` of the user's.

    Raises:
        UserError: They are text, a single batch, nothing to go through, or a generator that was gone through.
    """
    wanted = "batches must be a list of batches, or another iterable of them, but is"
    if isinstance(batches, _TEXT):
        raise UserError(f"{wanted} {batches!r}: no text is read here, a tokenizer makes tensors of it.")
    if isinstance(batches, Tensor) and not rows_are_batches:
        raise UserError(f"{wanted} one tensor, {list(batches.shape)}: put it into a list.")
    if isinstance(batches, Mapping):
        raise UserError(f"{wanted} one {type(batches).__name__} of {_names(batches)}: put it into a list.")
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise UserError(f"{wanted} {_what(batches)}.")
    if isinstance(batches, Generator) and getgeneratorstate(batches) == GEN_CLOSED:
        raise UserError(_NONE_LEFT)


def as_batch(batch: Any) -> Any:
    """``batch``, one by name as a dict of its own.

    Raises:
        UserError: No model takes it: it is text or numbers, or has no tensor with an element.
    """
    tensors = [batch] if isinstance(batch, Tensor) else []
    if isinstance(batch, Mapping):
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    elif isinstance(batch, tuple | list):
        tensors = [value for value in batch if isinstance(value, Tensor)]
    elif not isinstance(batch, Tensor) and (batch is None or isinstance(batch, (*_TEXT, bool, int, float))):
        raise UserError(f"{_WANTED} {_what(batch)}.")
    elif type(batch).__module__ == "numpy":
        raise UserError(f"{_WANTED} an array of numpy: torch.from_numpy makes a tensor of it.")
    if not tensors and isinstance(batch, Mapping | tuple | list) and not _nested(batch):
        hint = ": a tokenizer gives tensors when asked for return_tensors='pt'" if isinstance(batch, Mapping) else ""
        raise UserError(f"{_WANTED} a {type(batch).__name__} of {_names(batch)} without any{hint}.")
    # Of several, one may say that there is none of a thing.
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise UserError(f"{_WANTED} a tensor without elements, {list(tensors[0].shape)}.")
    return dict(batch) if isinstance(batch, Mapping) else batch


def given_one_by_one(batches: Iterable[Any]) -> Iterator[Batch]:
    """``batches``, each looked at when it is its turn.

    Raises:
        UserError: As ``check_batches`` at the first, and as ``as_batch``; or an iterator gave none.
    """
    check_batches(batches)
    for batch in known_to_give(batches):
        yield as_batch(batch)


def listed(batches: Iterable[Any]) -> list[Batch]:
    """``batches`` as a list of them, which may be gone through again and again.

    Raises:
        UserError: As ``given_one_by_one``.
    """
    return list(given_one_by_one(batches))


def known_to_give(batches: Iterable[Any]) -> Iterator[Any]:
    """``batches``. Where it is an iterator that gives none, which it may have done before, that is an error."""
    index = -1
    for index, batch in enumerate(batches):  # noqa: B007
        yield batch
    if index < 0 and iter(batches) is batches:
        raise UserError(_NONE_LEFT)


def count_of(batches: Iterable[Any]) -> int | None:
    """How many there are, where that is known."""
    return len(batches) if isinstance(batches, Sized) else None


_WANTED = "A batch must be a tensor, or several by place or by name, but is"
_NONE_LEFT = (
    "batches must give a batch, but is an iterator that gives none: one that was gone through before gives nothing again, "
    "so keep its batches in a list."
)


def _nested(batch: Any) -> bool:
    """Whether tensors may be deeper inside, where a model of the user's looks for them."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    plain = (*_TEXT, bool, int, float, type(None))
    return any(_is_nested(value, plain) for value in values)


def _is_nested(value: Any, plain: tuple) -> bool:
    if isinstance(value, Mapping | tuple | list):
        return _nested(value)
    return not isinstance(value, plain) and type(value).__module__ != "numpy"


def _names(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return ", ".join(map(str, list(batch)[:4])) + (", ..." if len(batch) > 4 else "") or "nothing"
    return f"{len(batch)} elements"


def _what(given: Any) -> str:
    is_plain = given is None or isinstance(given, (*_TEXT, bool, int, float))
    return repr(given) if is_plain else f"a {type(given).__name__}"
