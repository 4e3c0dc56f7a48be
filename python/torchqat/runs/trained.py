"""The trained model of a run, from the state that its folder keeps."""

from torch import nn

from torchqat.errors import UserError
from torchqat.model.prepare import prepare
from torchqat.runs.run import Run
from torchqat.training.best_state import restore_best
from torchqat.training.lora import merge_adapters
from torchqat.training.parameters import choose_parameters
from torchqat.training.schedule import Schedule
from torchqat.training.state import load_training


def trained_state(run: Run) -> nn.Module:
    """The model of a run that was trained to its end, at its exported widths and in its best state.

    Raises:
        UserError: There is no such state.
    """
    path = run.folder / "checkpoints" / "train.pt"
    state = load_training(path)
    if state is None:
        raise UserError(f"{run.folder} must have a trained state, but {path} does not exist; run torchqat train first.")
    steps, reached = run.recipe.train.steps, state.facts["step"]
    if reached < steps:
        raise UserError(f"{run.folder} must be trained to step {steps}, but stopped at {reached}; use --resume.")
    model = prepare(run.fresh_model(), run.plan, run.recipe.initialize, run.recipe.train.weight_cache)
    choose_parameters(run.recipe.train, model)
    schedule = Schedule(model, run.recipe, steps)
    state.restore(model)
    schedule.load_state_dict(state.facts["schedule"])
    if run.recipe.train.validate_every:
        restore_best(path.with_name("best.pt"), model)
    return merge_adapters(model)
