"""Batches of any kind: one tensor, or several by place or by name, all with a row for each example."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from torchqat.errors import UserError

Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def tensors_of(batch: Batch) -> list[Tensor]:
    """Its tensors, those with names in the order of these."""
    if isinstance(batch, Tensor):
        return [batch]
    return [batch[name] for name in sorted(batch)] if isinstance(batch, dict) else list(batch)


def _map(batch: Batch, change) -> Batch:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: change(tensor) for name, tensor in batch.items()}
    return tuple(change(tensor) for tensor in batch)


def largest_of(batch: Batch) -> int:
    """The largest token of a batch of such, as the model's or its decoder's inputs; 0 where there are none."""
    names = ("input_ids", "decoder_input_ids")
    ids = [batch[name] for name in names if name in batch] if isinstance(batch, dict) else tensors_of(batch)
    return max((int(found.max()) for found in ids if found.numel()), default=0)


def length_of(batch: Batch) -> int:
    """Tokens of a row: columns of the ids of a batch by name, or of one that is ids alone; 0 where it has no tokens."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else batch
    return ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point() else 0


def generator_at(seed: int, step: int) -> torch.Generator:
    """What batch ``step`` is drawn by."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def size_of(batch: Batch) -> int:
    """Its number of rows."""
    return len(tensors_of(batch)[0])


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """On a GPU, without waiting for what it does: from memory that stays where it is until it was copied."""
    to_gpu = torch.device(device).type == "cuda" and torch.accelerator.is_available()

    def sent(tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if to_gpu and tensor.device.type == "cpu" else tensor
        return pinned.to(device, non_blocking=to_gpu)

    return _map(batch, sent)


def rows_of(batch: Batch, begin: int, end: int) -> Batch:
    """Rows ``begin`` to ``end``."""
    return _map(batch, lambda tensor: tensor[begin:end])


def chunks(batch: Batch, count: int) -> list[Batch]:
    """At most ``count`` batches of like size, in order, as ``Tensor.chunk`` makes them."""
    if isinstance(batch, Tensor):
        return list(batch.chunk(count))
    size = -(-size_of(batch) // count)
    return [rows_of(batch, begin, begin + size) for begin in range(0, size_of(batch), size)]


def bytes_of(tensor: Tensor) -> bytes:
    """Its elements in row order."""
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()


def digest(batch: Batch) -> bytes:
    """Changes with any element of ``batch``."""
    found = sha256()
    for tensor in tensors_of(batch):
        found.update(bytes_of(tensor))
    return found.digest()


def as_inputs(example: Any) -> tuple[Tensor, ...]:
    """``example`` as a tuple of tensors, those with names in its order.

    Raises:
        UserError: There is none.
    """
    if example is None:
        raise UserError(
            "example must be given, as the tensor or the tensors, by place or by name, that the model takes, but is not; "
            "onnx is traced with it, and engines are asked it."
        )
    if isinstance(example, dict):
        return tuple(example.values())
    return tuple(example) if isinstance(example, (tuple, list)) else (example,)


def call_with(model: Callable, example: Batch, device: torch.device | str) -> Any:
    """What ``model`` gives for ``example``, each of whose tensors goes where its name says, or its place."""
    given = to_device(example, device)
    return model(**given) if isinstance(given, dict) else model(*as_inputs(given))
