"""What is found of a model: a cell for each step, and how faults are put into words."""

import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

CELLS = (
    "covered", "called", "calibrated", "trained", "compressed-tensors", "transformers", "safetensors", "gptq", "awq", "gguf",
)  # fmt: skip
FORMATS = ("compressed-tensors", "safetensors", "gptq", "awq", "gguf")
YES, PARTLY, NO, FAULT, SKIPPED = "yes", "partly", "no", "fault", "-"


@dataclass
class Cell:
    """What came of one step.

    Attributes:
        state: ``yes``; ``partly``, of some layers, or ``no``: torchqat says why; ``fault``; ``-``: not reached.
        text: The sentence, or what the fault is.
    """

    state: str
    text: str = ""


@dataclass
class Result:
    """What is known of one model.

    Attributes:
        name: Of the entry.
        kind, purpose: Of the entry.
        built: Empty, or why transformers itself cannot build or run the model.
        cls: The class in transformers.
        shares: Of the parameters and of the multiplied weights, output heads aside, what is quantized.
        cells: By ``CELLS``.
        seconds: How long it took.
    """

    name: str
    kind: str
    purpose: str
    built: str = ""
    cls: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    seconds: float = 0.0


class Fault(Exception):
    """Something that is silently incomplete or wrong."""


def named(weight: str, text: str) -> bool:
    """Whether the plan's text names the parameter, its module, or either with a star for the number of a block."""
    for name in {weight, weight.rpartition(".")[0]}:
        for form in (name, re.sub(r"\.\d+(?=\.|$)", ".*", name)):
            if re.search(rf"(?<![\w.*]){re.escape(form)}(?![\w.]*\w)", text):
                return True
    return False


def listed(names: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def described(error: BaseException, place: bool = True) -> str:
    """An exception in a line, with the innermost place in torchqat that it went through and the innermost of all."""
    line = " ".join(str(error).split())
    text = f"{type(error).__name__}: {line if len(line) <= 200 else f'{line[:200]}...'}"
    if not place:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/torchqat/" in frame.filename][-1:]
    places = dict.fromkeys(f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}" for f in [*ours, *frames[-1:]])
    return f"{text} ({', '.join(places)})"
