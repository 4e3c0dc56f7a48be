"""Whether a schedule counts what the optimizer does: where gradients are accumulated, a batch is no step."""

from typing import Any

from torch.optim import Optimizer

# The first steps of mixed precision may be skipped, while its scale of losses finds its way down.
_ENOUGH = 16


class StepsTaken:
    """The steps of an optimizer beside those that are counted.

    Args:
        given: As the user has it. Accelerate's takes none between two micro-batches whose gradients are accumulated, and
            says when; a step that is counted then is none.
        optimizer: The one of torch inside.
    """

    def __init__(self, given: Any, optimizer: Optimizer):
        self._accumulation = getattr(given, "gradient_state", None)
        self._taken = self._counted = 0
        self._says = hasattr(optimizer, "register_step_post_hook")
        self._hook = optimizer.register_step_post_hook(self._take) if self._says else None

    def _take(self, *_) -> None:
        self._taken += 1

    def end(self) -> None:
        """Leave the optimizer as it was: another is counted, or the same anew."""
        if self._hook is not None:
            self._hook.remove()

    @property
    def accumulating(self) -> bool:
        """Whether Accelerate's optimizer has left this micro-batch for a later one."""
        return self._accumulation is not None and not self._accumulation.sync_gradients

    def count(self) -> str:
        """Count one; a sentence, once, where the optimizer takes far fewer. One that says nothing is not judged."""
        self._counted += 1
        if not self._says or self._counted < _ENOUGH:
            return ""
        self._says = False
        if not 0 < 2 * self._taken <= self._counted:
            return ""
        return (
            f"Schedule.step has counted {self._counted} steps, of which the optimizer took {self._taken}: call it where the "
            "optimizer takes one, after the last of the batches whose gradients are accumulated, or widths change too early."
        )
