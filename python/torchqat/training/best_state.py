"""The best state of a training, by the KL to the float model on data that are neither trained on nor reported."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from torchqat.training.state import load_training, save_training


class BestState:
    """Measures a model now and then and keeps, on disk, the state that was nearest to the float model.

    Args:
        model: The model that is trained; only states at its exported widths are handed in.
        measure: How far it is from the float model; less is better.
        path: Where the state is kept.
        identity: What a kept state must agree on to be used again.

    Attributes:
        step: Steps after which the best state was.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[], float],
        path: Path,
        identity: str,
    ):
        self.model, self.measure = model, measure
        self.path, self.identity = path, identity
        self.history: list[tuple[int, float]] = []
        self._best: float | None = None
        self.step = 0
        state = load_training(path)
        if state is not None and state.facts["identity"] == identity:
            self._best, self.step = state.facts["kl"], state.facts["step"]
            self.history = [tuple(entry) for entry in state.facts["history"]]

    def consider(self, step: int) -> float:
        """Measure the model after ``step`` steps, keep its state if it is the best so far, and return its KL."""
        kl = self.measure()
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, kl)]
        if self._best is None or kl < self._best or step == 0:
            self._best, self.step = kl, step
            facts = {"identity": self.identity, "step": step, "kl": kl, "history": self.history}
            save_training(self.path, facts, self.model)
        return kl

    def restore(self) -> int:
        """Put the best state into the model, in its exported widths, and return the step it is from."""
        restore_best(self.path, self.model)
        return self.step

    @property
    def start(self) -> float:
        """KL before the first step."""
        return self.history[0][1]

    @property
    def best(self) -> float:
        return self._best


def restore_best(path: Path, model: nn.Module) -> None:
    """Put the state that is kept at ``path`` into ``model``, if one is; the step of a schedule stays that of the run."""
    state = load_training(path)
    if state is not None:
        state.restore(model, keep=["qat_step"])
