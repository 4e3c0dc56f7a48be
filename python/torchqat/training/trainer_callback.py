"""``TrainerCallback``: the schedule inside transformers' ``Trainer``."""

from torch import Tensor

from torchqat._library import Recipe
from torchqat.extras import needs
from torchqat.training.monitor import Monitor
from torchqat.training.schedule import Schedule

with needs("hf", "TrainerCallback"):
    from transformers import TrainerCallback as _Base


class TrainerCallback(_Base):
    """Steps the schedule of a prepared model after each of the Trainer's optimizer steps.

    The step and the scales are in the model's ``state_dict``, so the Trainer's checkpoints carry them and
    ``resume_from_checkpoint`` goes on with the right widths.

    What ``Monitor`` sees goes into the Trainer's log history as ``qat/...``. Reporters such as TensorBoard's come before the
    callbacks that a Trainer is made with; ``add_to(trainer)`` puts this one before them, so that they see it, too.

    Args:
        recipe: The recipe that the model was prepared with.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.schedule: Schedule | None = None
        self.monitor: Monitor | None = None
        self._seen: dict[str, float] = {}
        self._looked: Tensor | None = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        self.schedule = Schedule(model, self.recipe, state.max_steps, getattr(optimizer, "optimizer", optimizer))
        self.monitor = Monitor(model) if self.recipe.train.monitor else None
        if state.global_step:
            self.schedule.load_state_dict({"step": state.global_step, "total_steps": state.max_steps})

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.schedule.step()
        if self.monitor is not None:
            self._looked = self.monitor.look()  # on the device, until there is a line to log
        self._seen["weight_bits"] = float(self.schedule.weight_bits)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self.monitor is not None and self._looked is not None:
            self._seen.update(self.monitor.named(self._looked.cpu().tolist()))
            self._looked = None
        seen = {f"qat/{name}": value for name, value in self._seen.items()}
        if logs is not None:
            logs.update(seen)
        if state.log_history:  # which has a copy already
            state.log_history[-1].update(seen)

    def add_to(self, trainer) -> None:
        """Add this callback to ``trainer`` before every other."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.schedule.finish()
