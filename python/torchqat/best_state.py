"""The best state of a training, by the KL to the float model on data that are neither trained on nor reported."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from torchqat.batches import Batch
from torchqat.evaluate import evaluate
from torchqat.files import load_state, save_state
from torchqat.kinds import Kind


class BestState:
    """Measures a model now and then and keeps, on disk, the state that was nearest to the float model.

    Args:
        model: The model that is trained; only states at its exported widths are handed in.
        original: The float model.
        batches: Validation data.
        path: Where the state is kept.
        identity: What a kept state must agree on to be used again.
        kind: What the model is for.
    """

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        batches: Iterable[Batch],
        path: Path,
        identity: str,
        kind: Kind | str = "causal_lm",
    ):
        self.kind = kind
        self.model, self.original, self.batches = model, original, list(batches)
        self.path, self.identity = path, identity
        self.history: list[tuple[int, float]] = []
        self._best: float | None = None
        if path.is_file():
            state = load_state(path)
            if state["identity"] == identity:
                self._best, self.history = state["kl"], [tuple(entry) for entry in state["history"]]

    def consider(self, step: int) -> float:
        """Measure the model after ``step`` steps, keep its state if it is the best so far, and return its KL."""
        kl = evaluate(self.model, self.batches, self.original, self.kind).kl
        self.history = [entry for entry in self.history if entry[0] < step] + [(step, kl)]
        if self._best is None or kl < self._best or step == 0:
            self._best = kl
            figures = {"identity": self.identity, "step": step, "kl": kl, "history": self.history}
            save_state(self.path, {**figures, "model": self.model.state_dict()})
        return kl

    def restore(self) -> int:
        """Put the best state into the model, in its exported widths, and return the step it is from."""
        state = load_state(self.path)
        self.model.load_state_dict({**state["model"], **_step_of(self.model)})
        return state["step"]

    @property
    def start(self) -> float:
        """KL before the first step."""
        return self.history[0][1]

    @property
    def best(self) -> float:
        return self._best


def _step_of(model: nn.Module) -> dict[str, Tensor]:
    """A schedule's step is the run's, not that of the state."""
    return {"qat_step": model.qat_step.clone()} if hasattr(model, "qat_step") else {}
