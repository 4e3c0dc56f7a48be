"""``LightningCallback``: the schedule inside Lightning's ``Trainer``."""

import logging
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    from pytorch_lightning import Callback, LightningModule, Trainer

from torchqat._library import Recipe
from torchqat.training.monitor import Monitor
from torchqat.training.schedule import Schedule


class LightningCallback(Callback):
    """Steps the schedule of a prepared module after each of the Trainer's optimizer steps, and logs what ``Monitor`` sees.

    The step, the widths and the scales are in the module's ``state_dict``, so Lightning's checkpoints carry them, and
    ``ckpt_path`` ends with the bits of a training that was not interrupted. Learned scales move as in groups of
    ``parameter_groups``, also where ``configure_optimizers`` has them among weights, which a sentence says.

    Args:
        recipe: The recipe that the module, or a part of it, was prepared with.

    Raises:
        UserError: When training begins: what ``Schedule`` refuses.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.schedule: Schedule | None = None
        self.monitor: Monitor | None = None
        self._steps = 0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # Before a checkpoint is loaded: what the schedule adds to the state must have a place there.
        if stage == "fit" and self.schedule is None:
            self.schedule = Schedule(module, self.recipe, int(trainer.estimated_stepping_batches))
            self.monitor = Monitor(module) if self.recipe.train.monitor else None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.schedule.optimizer = trainer.optimizers[0]
        self._steps = trainer.global_step
        state = {"step": trainer.global_step, "total_steps": self.schedule.bits.total_steps}
        self.schedule.load_state_dict(state)
        watched = [name for call in trainer.callbacks if isinstance(name := getattr(call, "monitor", None), str)]
        if watched and not self.schedule.is_at_exported_widths:
            logging.getLogger("torchqat").warning(
                f"{watched[0]} is watched for the best checkpoint or for stopping, but before the weights have their "
                "exported widths it is better than that of what is exported: a checkpoint from then is refused by export."
            )

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return  # a micro-batch, whose gradients were added to those of the next
        self._steps = trainer.global_step
        self.schedule.step()
        seen = self.monitor.named(self.monitor.look().float()) if self.monitor is not None else {}
        seen = {**seen, "weight_bits": float(self.schedule.weight_bits)}
        module.log_dict({f"qat/{name}": value for name, value in seen.items()})

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.schedule.finish()
