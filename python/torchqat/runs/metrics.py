"""The figures of every step, for ``metrics.jsonl`` and TensorBoard."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchqat.errors import UserError


def tensorboard(folder: Path) -> Callable[[dict], None]:
    """Writes the numbers of a step for TensorBoard, into ``folder``.

    Raises:
        UserError: It is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "train.tensorboard needs tensorboard, which is not installed: pip install 'torchqat[tensorboard]'."
        ) from error
    writer = SummaryWriter(str(folder))

    def write(line: dict) -> None:
        for name, value in line.items():
            if name == "weight_bits":
                value = max(value)
            if name != "step" and _number(value) is not None:
                writer.add_scalar(name, value, line["step"])
        writer.flush()

    return write


def append_metric(path: Path, line: dict) -> None:
    """One line a step; a resumed run writes the steps after its checkpoint again, the last line counts."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({name: _number(value) for name, value in line.items()}) + "\n")


def _number(value: Any) -> Any:
    """JSON has no NaN: the loss of a batch that was skipped is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
