"""From folders on disk back to models: a run's trained state, an exported checkpoint, any model to evaluate."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from torchqat._library import load_recipe
from torchqat.checkpoints.deploy import load
from torchqat.errors import UserError
from torchqat.files import digest_of, read_json
from torchqat.model.completeness import CAUSAL_LM
from torchqat.model.loading import check_loads, empty_model, load_model, no_note
from torchqat.runs.candidates import Candidates
from torchqat.runs.folder import is_run, read_settings
from torchqat.runs.identity import apply
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.runs.sources import data_source
from torchqat.runs.trained import trained_state
from torchqat.runs.variants import initialized_name, last_name, naive_model, naive_name, trained_name
from torchqat.verification.engines.transformers import load_in_transformers

# Methods whose codes transformers computes with, by a library of their own, and does not make dense.
_AS_THEY_ARE = ("gptq", "awq")


def open_run(folder: Path, device: str = "") -> Run:
    """The run in ``folder``, with the model and data that it used.

    Args:
        folder: Its own.
        device: Where to compute now, in place of what its recipe says.

    Raises:
        UserError: The folder is not that of a run.
    """
    settings = read_settings(folder)
    recipe = load_recipe(str(folder / "recipe.yaml"))
    apply(recipe, settings["made_of"]["recipe"])  # what was set by options, or in Python
    recipe.model.path, recipe.model.scratch = settings["model"], None
    recipe.data.train, recipe.data.evaluation_path = settings["data"], settings["evaluation"]
    recipe.data.sources = [data_source(found) for found in settings.get("sources", [])]
    recipe.evaluate.task = settings["task"]
    if device:
        recipe.device = device
    if settings["directory"] not in sys.path:
        sys.path.append(settings["directory"])
    run = Run(recipe, folder, Progress(), kept=settings["made_of"])
    run.streamed, run.dtype = settings["made_of"]["streamed"], settings.get("dtype", "")
    content = run.float_model.content_of_files
    if content and content != settings["made_of"]["model"]:
        raise UserError(
            f"{settings['model']} must hold the model that the run in {folder} was made of, but it has changed since."
        )
    return run


def exported_model(folder: Path, run: str = "", variant: str = "", device: str = "") -> tuple[Run, nn.Module]:
    """The run that wrote the checkpoint in ``folder``, and the prepared model that it was exported from.

    Args:
        folder: Known to the run's report by its content, however it is called now, else by its place.
        run: The run's folder; found above ``folder`` when empty.
        variant: Which of the run's variants it is of; what the report says when empty.
        device: As ``open_run`` takes it.

    Raises:
        UserError: There is no such run, or its report does not know the checkpoint.
    """
    opened = open_run(run_above(folder, run), device)
    return opened, variant_model(opened, variant or _variant_of(opened, folder))


def run_above(folder: Path, run: str = "") -> Path:
    """The folder of the run that ``folder`` lies in, or that ``run`` names.

    Raises:
        UserError: There is none.
    """
    if not run and is_run(folder):
        raise UserError(
            f"DIR must be a checkpoint of a run, but {folder} is the run; its checkpoints are in {folder / 'exports'}."
        )
    if not folder.is_dir():
        is_there = folder.exists()
        what = f"a file: give the folder that it is in, {folder.parent}" if is_there else "not there"
        raise UserError(f"DIR must be the folder of a checkpoint, but {folder} is {what}.")
    root = Path(run) if run else next((p for p in folder.resolve().parents if is_run(p)), None)
    if root is None:
        raise UserError(
            f"{folder} must lie in the folder of the run that wrote it, or --run must name that, but neither holds. "
            "What others made is compared with its float model by verify DIR --reference MODEL."
        )
    return root


def _variant_of(run: Run, folder: Path) -> str:
    exports, digest, root = run.report().exports, digest_of(folder), run.folder.resolve()
    by_content = (export for export in exports.values() if export["sha256"] == digest)
    by_place = (export for place, export in exports.items() if (root / place).resolve() == folder.resolve())
    found = next(by_content, None) or next(by_place, None)
    if found is None:
        names = ", ".join(sorted({export["variant"] for export in exports.values()})) or "none"
        raise UserError(
            f"{folder} must be an export of the run in {run.folder}, as it was written or where it was written, but is not; "
            f"--variant can say of which model it is: {names}."
        )
    return found["variant"]


def trained_model(run: Run) -> nn.Module:
    """What the run is for: its trained model at its exported widths or, of one that trains nothing, the rounded one.

    Raises:
        UserError: The run has not come to its end.
    """
    return variant_model(run, last_name(run))


def variant_model(run: Run, name: str) -> nn.Module:
    """The model of a variant of the run, prepared and at its exported widths.

    Raises:
        UserError: The run has none of that name, or has not come so far.
    """
    if run.streamed:
        raise UserError(
            f"The run in {run.folder} was streamed and kept no model: what it wrote in exports is all that there is of it."
        )
    if run.recipe.mode == "auto":
        if not name:
            raise UserError(
                f"{run.folder} must have come to a decision, but has not; go on with torchqat run --resume."
            )
        return Candidates(run).model(name).eval()
    made = {naive_name(bits): partial(naive_model, run, bits) for bits in run.recipe.evaluate.compare}
    made[initialized_name(run)] = partial(run.prepared, run.plan)
    if run.recipe.train.steps:
        made[trained_name(run)] = partial(trained_state, run)
    if name not in made:
        raise UserError(f"variant must be one of the run in {run.folder}, {', '.join(made)}, but is {name}.")
    return made[name]().eval()


def load_any(path: str, note: Callable[[str], None] = no_note) -> nn.Module:
    """A causal language model from a folder, GGUF file or hub id.

    One of the format safetensors runs here on packed weights; other quantized ones are dequantized by transformers.

    Args:
        path: Where it is.
        note: Told what is not as it was there.

    Raises:
        UserError: There is none, or transformers cannot load it.
    """
    config = Path(path) / "config.json"
    if config.is_file() and (found := read_json(config, "A model's configuration").get("quantization_config")):
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method == "torchqat":
            return load(empty_model(path), path, packed=True).eval()
        if method not in _AS_THEY_ARE:
            check_loads(path, CAUSAL_LM, note)
        return load_in_transformers(Path(path))
    return load_model(path, note=note)
