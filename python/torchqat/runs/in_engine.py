"""The engine that a recipe names: what was exported, measured there beside the float model."""

from pathlib import Path

from torch import nn

from torchqat.errors import UserError
from torchqat.runs.run import Run
from torchqat.runs.steps import verify_in_engine
from torchqat.verification.engines import engine_formats


def measured_in_engine(run: Run, model: nn.Module, folders: dict[str, Path]) -> dict:
    """What ``model`` costs in the recipe's engine beside the float model, as the report has it; empty without an engine.

    Args:
        run: Whose recipe names it.
        model: The prepared one that was exported.
        folders: Its checkpoints by their formats; the first that the engine loads is measured.
    """
    name = run.recipe.engine
    if not name:
        return {}
    loaded = engine_formats(name)
    folder = next((path for format, path in folders.items() if format in loaded), next(iter(folders.values())))
    try:
        timed = run.kind.writes_text or name == "onnxruntime"  # transformers answers others alone
        checked = verify_in_engine(run, folder, model, name, timed)
    except UserError as error:
        run.progress.say(f"Note: {error}")
        return {"name": name, "note": str(error)}
    run.progress.say(f"{folder}: {checked}")
    speeds = {"export": checked.speed, "float": checked.baseline}
    return {"name": name, "ok": checked.ok, **{n: vars(s) for n, s in speeds.items() if s is not None}}
