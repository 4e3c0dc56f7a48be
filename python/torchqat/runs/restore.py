"""From folders on disk back to models: a run's trained state, an exported checkpoint, any model to evaluate."""

from pathlib import Path

from torch import nn

from torchqat._library import load_recipe, naive_plan
from torchqat.checkpoints.deploy import load
from torchqat.errors import UserError
from torchqat.files import read_json
from torchqat.model.loading import empty_model, load_model
from torchqat.model.prepare import prepare
from torchqat.runs.auto import Candidates
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.training.best_state import restore_best
from torchqat.training.lora import merge_adapters
from torchqat.training.parameters import choose_parameters
from torchqat.training.schedule import Schedule
from torchqat.training.state import load_training
from torchqat.verification.engines.transformers import load_in_transformers


def open_run(folder: Path) -> Run:
    """The run in ``folder``, with the model and data that it used.

    Raises:
        UserError: The folder is not that of a run.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"RUN must be the folder of a run, with a run.json, but {folder} is not.")
    settings = read_json(folder / "run.json", "The settings of a run")
    recipe = load_recipe(str(folder / "recipe.yaml"))
    recipe.model.path, recipe.model.scratch = settings["model"], None
    recipe.data.train = settings["data"]
    recipe.train.steps = settings.get("steps", recipe.train.steps)
    return Run(recipe, folder, Progress())


def trained_model(run: Run) -> nn.Module:
    """The trained model of a run, at its exported widths; of one that trains nothing, what post-training quantization gave.

    Raises:
        UserError: The run has not been trained to its end.
    """
    if run.recipe.mode == "auto":
        return _candidate(run, run.load_report().chosen)
    if run.recipe.train.steps == 0:
        return run.prepared(run.plan).eval()
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
    return merge_adapters(model).eval()


def exported_model(folder: Path, run: str = "") -> tuple[Run, nn.Module]:
    """The run that wrote the checkpoint in ``folder``, and the prepared model that it was exported from."""
    root = Path(run) if run else next((p for p in folder.resolve().parents if (p / "run.json").is_file()), None)
    if root is None:
        raise UserError(
            f"{folder} must lie in the folder of the run that wrote it, or --run must name that, but neither holds."
        )
    run = open_run(root)
    if run.recipe.mode == "auto":
        report = run.load_report()
        names = [variant.name for variant in report.variants if folder.name.endswith(f"-{variant.name}")]
        return run, _candidate(run, max(names, key=len, default=report.chosen))
    width = folder.name.rpartition("-int")[2].removesuffix("-naive")
    if folder.name.endswith("-naive") and width.isdigit():
        return run, run.prepared(naive_plan(run.plan, int(width)), "rtn")
    if folder.name.endswith(f"-{run.width_names}-{run.recipe.initialize.method}".replace("+", "-")):
        return run, run.prepared(run.plan)
    return run, trained_model(run)


def _candidate(run: Run, name: str) -> nn.Module:
    """A model that mode auto has tried."""
    if not name:
        raise UserError(f"{run.folder} must have come to a decision, but has not; go on with torchqat run --resume.")
    return Candidates(run).model(name).eval()


def load_any(path: str) -> nn.Module:
    """A causal language model from a folder or hub id.

    One of the format safetensors runs here on packed weights; other quantized ones are dequantized by transformers.
    """
    config = Path(path) / "config.json"
    if config.is_file() and (found := read_json(config, "A model's configuration").get("quantization_config")):
        packed = isinstance(found, dict) and found.get("quant_method") == "torchqat"
        return load(empty_model(path), path, packed=True).eval() if packed else load_in_transformers(Path(path))
    return load_model(path)
