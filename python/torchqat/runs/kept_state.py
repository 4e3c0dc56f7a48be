"""The state that a run ends with, on disk: read name by name, so that its model need not be in memory."""

from pathlib import Path
from typing import Any

from torch import Tensor

from torchqat.files import load_state
from torchqat.runs.identity import plan_content, settings_content
from torchqat.runs.run import Run
from torchqat.training.state import VERSION


class KeptState:
    """Tensors by their names in the prepared model, in a file of ``save_state``.

    The file is mapped anew whenever it is asked: what was read of it leaves memory with what was made of that.
    """

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors()[name].clone()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors()

    def inside(self, module: str) -> dict[str, Tensor]:
        """Those of ``module``, by their names there, mapped from the file."""
        prefix = f"{module}." if module else ""
        return {name[len(prefix) :]: t for name, t in self._tensors().items() if name.startswith(prefix)}

    def facts(self) -> dict[str, Any]:
        """What is kept beside tensors."""
        return {name: value for name, value in self._state().items() if name not in ("model", "optimizers")}

    def _tensors(self) -> dict[str, Tensor]:
        return self._state()["model"]

    def _state(self) -> dict[str, Any]:
        return load_state(self.path, mmap=True)


def kept_state(run: Run) -> KeptState | None:
    """Where the model that ``run`` ends with is one state of the names of its layers; ``None`` where it is made otherwise.

    That is so in mode auto, where nothing needed data, where adapters were trained or Hadamard matrices rotate all of the
    model, and where the state lies in the parts of several processes.
    """
    recipe, folder = run.recipe, run.folder / "checkpoints"
    if recipe.mode == "auto" or run.streamed or "hadamard" in recipe.initialize.transforms:
        return None
    if recipe.train.steps == 0:
        kept = KeptState(folder / "initialized.pt")
        identity = f"{run.identity} {plan_content(run.plan)} {settings_content(recipe.initialize)}"
        return kept if kept.path.is_file() and kept.facts()["identity"] == identity else None
    last = KeptState(folder / "train.pt")
    in_parts = any((folder / name).is_dir() for name in ("train", "best"))
    if recipe.train.parameters == "lora" or in_parts or not last.path.is_file():
        return None
    facts = last.facts()
    if facts["step"] < recipe.train.steps or facts.get("version", VERSION) != VERSION:
        return None  # which whoever needs the whole model says
    best = KeptState(folder / "best.pt")
    return best if recipe.train.validate_every and best.path.is_file() else last
