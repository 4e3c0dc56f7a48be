"""The calls of a block taken apart into sequences, of which any may be run together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchqat.ptq.block import Block, WholeModel
from torchqat.ptq.calls import Call, Path, alike, main_tensor

# Of the largest element: a product over fewer rows adds in another order, a sequence that sees another is far off.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 3e-2


@dataclass
class Sequences:
    """The sequences of all calls of a block.

    Attributes:
        call: What all of them share, with the rest in its places.
        rows: What each has of its own, ``[sequences, ...]``, masks among it, by place.
        count: Of sequences.
    """

    call: Call
    rows: dict[Path, Tensor]
    count: int

    def __len__(self) -> int:
        return self.count

    def of(self, places: Tensor) -> Call:
        """One call with the sequences ``places``."""
        return self.call.with_values({path: rows[places] for path, rows in self.rows.items()})


@torch.no_grad()
def join_sequences(block: Block, hidden: list) -> Sequences | None:
    """The sequences of all calls of ``block``, if they have one form and it gives each the same without the others.

    Args:
        block: Ready to run.
        hidden: What enters it, per call.
    """
    calls = [block.call(index, entering) for index, entering in enumerate(hidden)]
    given = block.make(calls[0])
    main = main_tensor(given)
    if main is None or (isinstance(block, WholeModel) and main is not given):
        return None
    parts = [dict(call.tensors()) for call in calls]
    if any(part.keys() != parts[0].keys() for part in parts):
        return None
    counts = [_rows_of(block, call) for call in calls]
    if None in counts:
        return None
    rows: dict[Path, Tensor] = {}
    for path, first in parts[0].items():
        found = [part[path] for part in parts]
        shared = all(one is first or (one.shape == first.shape and torch.equal(one, first)) for one in found)
        if shared and (first.dim() == 0 or first.shape[0] == 1 or first.shape[0] != counts[0]):
            continue
        if any(
            one.dim() == 0 or one.shape[0] != n or one.shape[1:] != first.shape[1:]
            for one, n in zip(found, counts, strict=True)
        ):
            return None
        rows[path] = torch.cat(found)
    joined = Sequences(calls[0], rows, sum(counts))
    alone = main_tensor(block.make(joined.of(torch.tensor([0]))))
    tolerance = _TOLERANCE.get(main.dtype, _HALF_TOLERANCE)
    return joined if main.shape[0] == counts[0] and alike(alone, main[:1], tolerance) else None


def _rows_of(block: Block, call: Call) -> int | None:
    hidden = None if block.hidden is None else call.at(block.hidden)
    return len(hidden) if isinstance(hidden, Tensor) and hidden.dim() else None
