"""What a recipe's training takes of memory, counted on a model without numbers: before it is begun, or paid for."""

from dataclasses import dataclass, fields, replace

from torch import nn

from torchqat._library import Plan, Recipe
from torchqat.data.functions import names_function
from torchqat.model.outline import without_numbers
from torchqat.model.prepare import prepare
from torchqat.runs.teacher import asks_float_model
from torchqat.training.memory import TrainingMemory, training_memory
from torchqat.training.parameters import choose_parameters

_WORDS = {"teacher": "float model", "rounded": "a rounded weight"}


@dataclass(frozen=True)
class TrainingNeeds:
    """Of one process.

    Attributes:
        memory: Bytes, without activations.
        uncounted: A function that makes optimizers, whose states are not counted; empty where all is.
    """

    memory: TrainingMemory
    uncounted: str = ""

    def __str__(self) -> str:
        unit, name = (2**30, "GiB") if self.memory.total >= 2**30 else (2**20, "MiB")
        sizes = {_WORDS.get(f.name, f.name): getattr(self.memory, f.name) for f in fields(self.memory)}
        parts = ", ".join(f"{what} {size / unit:.1f}" for what, size in sizes.items() if size >= unit / 20)
        left = f" and without what {self.uncounted} keeps" if self.uncounted else ""
        return f"training takes {self.memory.total / unit:.1f} {name} before activations{left}: {parts}"


def training_needs(recipe: Recipe, plan: Plan, model: nn.Module) -> TrainingNeeds | None:
    """What the training of ``recipe`` holds on its device, on one process; ``None`` where it trains nothing.

    Args:
        recipe: Of the run.
        plan: What becomes of the layers of ``model``.
        model: Before it is prepared, on any device, the meta device among them; it stays as it is.

    Raises:
        UserError: What trains cannot be chosen as the recipe says.
    """
    train = recipe.train
    if not train.steps and not train.epochs:
        return None
    prepared = prepare(without_numbers(model), plan, recipe.initialize)
    choose_parameters(train, prepared)
    teacher = next(model.parameters()).dtype if asks_float_model(recipe.distill) else None
    own = train.optimizer if names_function(train.optimizer) else ""
    memory = training_memory(
        prepared, teacher=teacher, optimizer="adamw" if own else train.optimizer, masters=train.masters
    )
    return TrainingNeeds(replace(memory, optimizer=0) if own else memory, own)
