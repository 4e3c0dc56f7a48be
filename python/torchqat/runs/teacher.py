"""A teacher that is asked once: ``torchqat teacher`` writes its answers, and trainings on the same batches read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchqat._library import DistillSection
from torchqat.data.batch import Batch, to_device
from torchqat.errors import UserError
from torchqat.kinds.kind import is_plain
from torchqat.kinds.stored_teacher import StoredTeacher, write_answers
from torchqat.kinds.top_choices import TopChoices, top_choices
from torchqat.model.placement import on_device

if TYPE_CHECKING:
    from torchqat.runs.run import Run

ORIGINAL = "original"  # the recipe's word for the float model in memory
TOP = 64
# A batch with answers has its own tensors beside them, or its one tensor as _ROWS.
_CHOICES, _LOG_PROBABILITIES, _ROWS = "teacher.choices", "teacher.log_probabilities", "teacher.rows"


def write_teacher(run: Run, folder: str | Path, top: int = TOP) -> int:
    """Write what the float model of ``run`` says to each batch of its training; an interrupted writing goes on.

    Args:
        run: Of a causal language model, trained by distillation.
        folder: Where the answers go: ``top`` times 8 bytes a token.
        top: Choices of each token that are kept; all others count as one.

    Returns:
        The bytes that are there then.

    Raises:
        UserError: The recipe does not learn from such answers, or ``folder`` has those to something else.
    """
    check_learns(run)
    run.settle_steps()
    steps, recipe = run.recipe.train.steps, run.recipe

    def answer(step: int) -> TopChoices:
        batch = to_device(run.data.train[step], run.device)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=recipe.train.mixed_precision != "none"):
            logits = run.kind.outputs(run.original, batch)
        if logits.shape[-1] <= top:
            raise UserError(f"--top must be less than the {logits.shape[-1]} tokens of the vocabulary, but is {top}.")
        return top_choices(logits, top, recipe.distill.temperature)

    made_of = {**_made_of(run), "top": top}
    with run.progress.listens(), on_device(run.original, run.device), torch.inference_mode():
        write_answers(Path(folder), made_of, steps, answer)
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def check_learns(run: Run) -> None:
    """Raises UserError where the training of ``run`` could not learn from stored answers."""
    if run.kind.name != "causal_lm":
        raise UserError(f"A stored teacher is one of a causal_lm, but model.kind is {run.kind.name}.")
    if is_plain(run.recipe.distill) or not (run.recipe.train.steps or run.recipe.train.epochs):
        raise UserError(
            "A stored teacher needs a recipe that distils: train.steps above 0, and distill.loss forward_kl."
        )


def asks_float_model(settings: DistillSection) -> bool:
    """Whether each step of a training asks the float model, which then lies beside the one that trains."""
    return not is_plain(settings) and settings.teacher == ORIGINAL


def stored_teacher(run: Run) -> StoredTeacher | None:
    """The answers that the recipe of ``run`` learns from, ``None`` where it asks the float model.

    Raises:
        UserError: They are not those to the batches of this training.
    """
    if run.recipe.distill.teacher == ORIGINAL:
        return None
    check_learns(run)
    teacher = StoredTeacher(run.recipe.distill.teacher)
    teacher.check(_made_of(run))
    teacher.check_steps(run.recipe.train.steps)
    return teacher


def _made_of(run: Run) -> dict[str, Any]:
    train, data = run.recipe.train, run.data
    return {
        "model": run.float_model.content,
        "data": data.train.content,
        "seed": train.seed,
        "rows": train.batch_size * train.gradient_accumulation,
        "sequence_length": train.sequence_length,
        "mixed_precision": train.mixed_precision,
        "temperature": run.recipe.distill.temperature,
    }


@dataclass(frozen=True)
class TaughtBatches:
    """Batches with a teacher's answers to them."""

    batches: Any
    teacher: StoredTeacher

    def __getitem__(self, step: int) -> Batch:
        batch, answers = self.batches[step], self.teacher[step]
        own = batch if isinstance(batch, dict) else {_ROWS: batch}
        return {**own, _CHOICES: answers.choices, _LOG_PROBABILITIES: answers.log_probabilities}


def untaught(batch: Batch) -> tuple[Batch, TopChoices | None]:
    """A batch as it was, and the answers to it, where it has them."""
    if not isinstance(batch, dict) or _CHOICES not in batch:
        return batch, None
    own = {name: tensor for name, tensor in batch.items() if name not in (_CHOICES, _LOG_PROBABILITIES)}
    return own.get(_ROWS, own), TopChoices(batch[_CHOICES], batch[_LOG_PROBABILITIES])
