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
from torchqat.runs.fine_tune import choose_parameters
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.training.best_state import restore_best
from torchqat.training.lora import merge_adapters
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


def trained_model(job: Run) -> nn.Module:
    """The trained model of a run, at its exported widths; of one that trains nothing, what post-training quantization gave.

    Raises:
        UserError: The run has not been trained to its end.
    """
    if job.recipe.mode == "auto":
        return _candidate(job, job.load_report().chosen)
    if job.recipe.train.steps == 0:
        return job.prepared(job.plan).eval()
    path = job.folder / "checkpoints" / "train.pt"
    state = load_training(path)
    if state is None:
        raise UserError(f"{job.folder} must have a trained state, but {path} does not exist; run torchqat train first.")
    steps, reached = job.recipe.train.steps, state.facts["step"]
    if reached < steps:
        raise UserError(f"{job.folder} must be trained to step {steps}, but stopped at {reached}; use --resume.")
    model = prepare(job.fresh_model(), job.plan, job.recipe.initialize, job.recipe.train.weight_cache)
    choose_parameters(job, model)
    schedule = Schedule(model, job.recipe, steps)
    state.restore(model)
    schedule.load_state_dict(state.facts["schedule"])
    if job.recipe.train.validate_every:
        restore_best(path.with_name("best.pt"), model)
    return merge_adapters(model).eval()


def exported_model(folder: Path, run: str = "") -> tuple[Run, nn.Module]:
    """The run that wrote the checkpoint in ``folder``, and the prepared model that it was exported from."""
    root = Path(run) if run else next((p for p in folder.resolve().parents if (p / "run.json").is_file()), None)
    if root is None:
        raise UserError(
            f"{folder} must lie in the folder of the run that wrote it, or --run must name that, but neither holds."
        )
    job = open_run(root)
    if job.recipe.mode == "auto":
        report = job.load_report()
        names = [variant.name for variant in report.variants if folder.name.endswith(f"-{variant.name}")]
        return job, _candidate(job, max(names, key=len, default=report.chosen))
    width = folder.name.rpartition("-int")[2].removesuffix("-naive")
    if folder.name.endswith("-naive") and width.isdigit():
        return job, job.prepared(naive_plan(job.plan, int(width)), "rtn")
    if folder.name.endswith(f"-{job.width_names}-{job.recipe.initialize.method}".replace("+", "-")):
        return job, job.prepared(job.plan)
    return job, trained_model(job)


def _candidate(job: Run, name: str) -> nn.Module:
    """A model that mode auto has tried."""
    if not name:
        raise UserError(f"{job.folder} must have come to a decision, but has not; go on with torchqat run --resume.")
    return Candidates(job).model(name).eval()


def load_any(path: str) -> nn.Module:
    """A causal language model from a folder or hub id.

    One of the format safetensors runs here on packed weights; other quantized ones are dequantized by transformers.
    """
    config = Path(path) / "config.json"
    if config.is_file() and (found := read_json(config, "A model's configuration").get("quantization_config")):
        packed = isinstance(found, dict) and found.get("quant_method") == "torchqat"
        return load(empty_model(path), path, packed=True).eval() if packed else load_in_transformers(Path(path))
    return load_model(path)
