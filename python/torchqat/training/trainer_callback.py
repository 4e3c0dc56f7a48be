"""``TrainerCallback``: the schedule inside transformers' ``Trainer`` and TRL's trainers."""

import logging

from torch import Tensor

from torchqat._library import Recipe
from torchqat.errors import UserError
from torchqat.extras import needs
from torchqat.layers.adapters import adapter_beside
from torchqat.training.lora import attach_adapters
from torchqat.training.monitor import Monitor
from torchqat.training.schedule import Schedule

with needs("hf", "TrainerCallback"):
    from transformers import TrainerCallback as _Base


class TrainerCallback(_Base):
    """Steps the schedule of a prepared model after each of the Trainer's optimizer steps.

    The step, the widths and the scales are in the model's ``state_dict``, so the Trainer's checkpoints carry them, those of
    peft among them, and ``resume_from_checkpoint`` ends with the bits of a training that was not interrupted.

    Learned scales move as in groups of ``parameter_groups``, also in the Trainer's own optimizer, which a sentence says;
    ``Trainer(optimizers=(optimizer, None))`` gives weights relative rates, too. Adapters that a trainer adds by
    ``peft_config`` are attached (``attach_adapters``). Evaluations at wider widths than the exported ones count neither for
    ``load_best_model_at_end`` nor for early stopping.

    What ``Monitor`` sees goes into the Trainer's log history as ``qat/...``. Reporters such as TensorBoard's come before the
    callbacks that a Trainer is made with; ``add_to(trainer)`` puts this one before them, so that they see it, too.

    Args:
        recipe: The recipe that the model was prepared with.

    Raises:
        UserError: When a trainer takes it: TRL's ``use_vllm``, whose engine would be handed the float weights, not the
            rounded ones that training sees. When training begins: what ``Schedule`` and ``attach_adapters`` refuse.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.schedule: Schedule | None = None
        self.monitor: Monitor | None = None
        self._seen: dict[str, float] = {}
        self._looked: Tensor | None = None

    def on_init_end(self, args, state, control, model=None, **kwargs) -> None:
        _refuse_rollouts_in_float(args)
        # Before the optimizer is made: learned scales train beside the adapters.
        if model is not None and adapter_beside(model):
            attach_adapters(model)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        self.schedule = Schedule(model, self.recipe, state.max_steps, optimizer)
        self.schedule.load_state_dict({"step": state.global_step, "total_steps": state.max_steps})
        self.monitor = Monitor(model) if self.recipe.train.monitor else None
        if getattr(args, "metric_for_best_model", None) and not self.schedule.is_at_exported_widths:
            logging.getLogger("torchqat").warning(
                "Evaluations before the weights have their exported widths do not count for the best checkpoint "
                f"({args.metric_for_best_model}): at more bits they are better than what is exported."
            )
        self._leave_out_wider(state)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        before = self.schedule.is_at_exported_widths
        self.schedule.step()
        if self.schedule.is_at_exported_widths != before:
            _forget_best(state)
        if self.monitor is not None:
            self._looked = self.monitor.look()  # on the device, until there is a line to log
        self._seen["weight_bits"] = float(self.schedule.weight_bits)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._leave_out_wider(state)

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self._leave_out_wider(state)

    def on_save(self, args, state, control, **kwargs) -> None:
        self._leave_out_wider(state)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._leave_out_wider(state)

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
        self.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.schedule.finish()

    def _leave_out_wider(self, state) -> None:
        """What was measured at widths that are not exported is no best."""
        if self.schedule is not None and not self.schedule.is_at_exported_widths:
            _forget_best(state)


def _refuse_rollouts_in_float(args) -> None:
    if getattr(args, "use_vllm", False):
        raise UserError(
            "use_vllm must be off for a prepared model: TRL hands vLLM its float weights, not the rounded ones of its "
            "training; let vLLM take them from torchqat.live_weights (docs/how-to/rl.md)."
        )


def _forget_best(state) -> None:
    state.best_metric = state.best_model_checkpoint = state.best_global_step = None
