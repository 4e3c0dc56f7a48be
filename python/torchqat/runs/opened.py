"""The folder of a run, opened for work: all that its input may be wrong in is tried before anything is written there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchqat.checkpoints.dtype import dtype_named
from torchqat.checkpoints.export import check_exports
from torchqat.device import name_of
from torchqat.files import save_state
from torchqat.precision import emulated_choices
from torchqat.runs.coverage import coverage
from torchqat.runs.folder import VERSION, check_asked, check_same, held, same_dtype, version_note
from torchqat.runs.own_optimizer import try_own_optimizer
from torchqat.runs.shared_folder import check_shared
from torchqat.runs.sources import absolute, check_apart, kept_source
from torchqat.runs.teacher import stored_teacher
from torchqat.training.checks import check_training
from torchqat.training.processes import check_together, is_first, wait
from torchqat.training.recomputation import check_recomputes
from torchqat.verification.engines import check_engine

if TYPE_CHECKING:
    from torchqat.runs.run import Run

# In the folder of a run.
EXAMPLE = Path("checkpoints") / "example.pt"


@contextmanager
def opened(run: Run, resume: bool, restart: bool) -> Iterator[None]:
    """``Run.opened``."""
    check_together()
    check_training(run.recipe)
    if is_first():
        check_asked(run.folder, resume, restart)
    run.settle_steps()
    _try_input(run, resume)
    check_apart(run.folder, run.recipe.data)
    settings = _settings(run)
    if not is_first():
        wait()  # until the folder is ready
        check_shared(run.folder)
        yield
        return
    device = name_of(run.device)
    if resume:
        check_same(run.folder, run.made_of)
        if note := version_note(run.folder, device):
            run.progress.say(f"Note: {note}")
    texts = {"recipe.yaml": run.recipe.text, "plan.txt": str(run.plan)}
    with held(run.folder, settings, texts, device, resume, restart):
        with run.changed_report() as report:
            report.coverage = coverage(run.plan)
        save_state(run.folder / EXAMPLE, {"batch": run.data.evaluation[0]})
        wait()
        check_shared(run.folder)
        yield


def _try_input(run: Run, resume: bool) -> None:
    """Model, exports, engine, optimizer, task and teacher, as far as each can be tried beforehand; their notes are kept."""
    recipe, float_model, kind = run.recipe, run.float_model, run.kind
    for sentence in emulated_choices(recipe, run.device):
        float_model.note(sentence)
    if not run.streamed:
        _ = run.original
        if float_model.reads_weights:
            kind.check(recipe, run.original)
    layers = run.plan.layers
    if resume:
        run.dtype = same_dtype(run.folder, run.dtype)
    outline, dtype = float_model.outline, dtype_named(run.dtype)
    for sentence in check_exports(outline, run.plan, recipe.exports, kind.writes_text, dtype, kind.pooling):
        float_model.note(sentence)
    check_engine(recipe.engine, outline, layers, run.plan.kv_cache)
    try_own_optimizer(recipe, run.plan, outline)
    if recipe.train.steps and recipe.train.gradient_checkpointing:
        check_recomputes(outline)
    _ = run.task
    stored_teacher(run)


def _settings(run: Run) -> dict[str, Any]:
    """What ``run.json`` says of it."""
    recipe = run.recipe
    return {
        "version": VERSION,
        "steps": recipe.train.steps,
        "model": absolute(run.model_path),
        "data": absolute(recipe.data.train),
        "sources": [kept_source(source) for source in recipe.data.sources],
        "evaluation": absolute(recipe.data.evaluation_path),
        "task": absolute(recipe.evaluate.task),
        "directory": os.getcwd(),  # where functions of the user's are looked for
        "made_of": run.made_of,
        "dtype": run.dtype,
    }
