"""``TrainerCallback``: the schedule inside transformers' ``Trainer``."""

from transformers import TrainerCallback as _Base

from torchqat._library import Recipe
from torchqat.schedule import Schedule


class TrainerCallback(_Base):
    """Steps the schedule of a prepared model after each of the Trainer's optimizer steps.

    The step and the scales are in the model's ``state_dict``, so the Trainer's checkpoints carry them and
    ``resume_from_checkpoint`` goes on with the right widths.

    Args:
        recipe: The recipe that the model was prepared with.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.schedule: Schedule | None = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        self.schedule = Schedule(model, self.recipe, state.max_steps, getattr(optimizer, "optimizer", optimizer))
        if state.global_step:
            self.schedule.load_state_dict({"step": state.global_step, "total_steps": state.max_steps})

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.schedule.step()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.schedule.finish()
