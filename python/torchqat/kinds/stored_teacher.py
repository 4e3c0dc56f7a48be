"""A teacher's answers on disk, some steps of a training to a file.

A folder has ``teacher.json``, which says what the answers are of, and ``steps-FIRST-LAST.safetensors`` with, for each of
these steps, ``STEP.choices`` and ``STEP.log_probabilities`` (top_choices.py). Each is there whole or not at all. All but the
last have as many steps as the first one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.files import pending_file, read_json, write_json
from torchqat.kinds.top_choices import TopChoices
from torchqat.progress import counted

_META = "teacher.json"
_STEPS_OF_FILE = 20
# What is known by digests, which say nothing to who reads them.
_CONTENTS = ("model", "data")


class StoredTeacher:
    """The answers in ``folder``.

    Attributes:
        made_of: What they depend on, and ``top``, how many choices there are of each token.

    Raises:
        UserError: There are none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / _META).is_file():
            raise UserError(
                "distill.teacher must be original or a folder that torchqat teacher wrote, but there is no "
                f"{_META} in {folder}."
            )
        self.made_of: dict[str, Any] = read_json(self.folder / _META, _META)
        self._read: tuple[Path, Any] = (Path(), None)  # the file that was opened last

    def check(self, made_of: dict[str, Any]) -> None:
        """Raises UserError where the answers depend on something else than ``made_of``."""
        pairs = {key: (self.made_of.get(key), here) for key, here in made_of.items()}
        differ = [
            f"it was asked of another {key}" if key in _CONTENTS else f"{key} is {there} there and {here} here"
            for key, (there, here) in pairs.items()
            if there != here
        ]
        if differ:
            raise UserError(f"The teacher in {self.folder} answers something else: {'; '.join(differ)}.")

    def check_steps(self, steps: int) -> None:
        """Raises UserError where the answers to one of so many steps are missing."""
        there = 0
        while file := _file(self.folder, there):
            there = _last(file) + 1
        if there < steps:
            raise UserError(
                f"The teacher in {self.folder} has the answers to {there} steps, but {steps} are to be taken; "
                "torchqat teacher goes on where it stopped."
            )

    def __getitem__(self, step: int) -> TopChoices:
        """What the teacher says to the batch of ``step``; the rows of the batch, on the host."""
        path = _file(self.folder, step // _STEPS_OF_FILE * _STEPS_OF_FILE)
        assert path is not None, "check_steps knows"
        if self._read[0] != path:
            self._read = path, _opened(path)
        return TopChoices(*(self._read[1].get_tensor(f"{step}.{name}") for name in ("choices", "log_probabilities")))


def write_answers(
    folder: Path,
    made_of: dict[str, Any],
    steps: int,
    answer: Callable[[int], TopChoices],
) -> None:
    """Write ``answer(step)`` for each of ``steps``; those that are there already are not asked for.

    Args:
        folder: New, or of an interrupted writing.
        made_of: What the answers depend on.
        steps: How many.
        answer: The answers of one, on any device.

    Raises:
        UserError: ``folder`` has answers that depend on something else.
    """
    if any(folder.glob("steps-*.safetensors")):  # else nothing was answered yet, by whatever was refused or stopped
        StoredTeacher(folder).check(made_of)
    write_json(folder / _META, made_of)
    for first in counted(range(0, steps, _STEPS_OF_FILE), f"Asking the teacher, {_STEPS_OF_FILE} steps at a time"):
        wanted, there = range(first, min(first + _STEPS_OF_FILE, steps)), _file(folder, first)
        if there is None or _last(there) < wanted[-1]:
            _write(folder, wanted, there, answer)


def _write(folder: Path, steps: range, before: Path | None, answer: Callable[[int], TopChoices]) -> None:
    """A file of ``steps``, the first of which may be in one that is there ``before`` it and gives way to it."""
    from safetensors.torch import save_file

    found, last = {}, -1
    if before is not None:
        file, last = _opened(before), _last(before)
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for step in steps:
        if step > last:
            for name, tensor in vars(answer(step)).items():
                found[f"{step}.{name}"] = tensor.cpu().contiguous()
    with pending_file(folder / f"steps-{steps[0]:06d}-{steps[-1]:06d}.safetensors") as pending:
        save_file(found, pending)
    if before is not None:
        before.unlink()


def _opened(path: Path):
    with needs("hf", "A stored teacher"):
        from safetensors import safe_open
    return safe_open(path, "pt")


def _file(folder: Path, first: int) -> Path | None:
    """The file that begins with step ``first``; of two, of which one was to give way, the longer."""
    return max(folder.glob(f"steps-{first:06d}-*.safetensors"), key=_last, default=None)


def _last(file: Path) -> int:
    """The last step that ``file`` has, by its name."""
    return int(file.stem.rpartition("-")[2])
