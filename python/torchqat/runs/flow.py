"""``torchqat run``: the whole flow, stage by stage, each kept so that an interrupted run goes on where it was."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchqat._library import DistillSection, Recipe
from torchqat.data.batch import Batch
from torchqat.errors import UserError
from torchqat.evaluation.number_types import compared_widths
from torchqat.recipes.shipped import as_settings, load_recipe
from torchqat.reports.report import Report, Variant, recovered
from torchqat.runs.auto import decide
from torchqat.runs.fine_tune import fine_tune, products_in_precision
from torchqat.runs.folder import default_folder
from torchqat.runs.hub import check_hub
from torchqat.runs.in_engine import measured_in_engine
from torchqat.runs.page import write_page
from torchqat.runs.progress import Progress
from torchqat.runs.pushed import push_last
from torchqat.runs.run import Run
from torchqat.runs.samples import samples_of
from torchqat.runs.steps import export_others, judge, make_variant, measure_baseline, measure_sensitivity
from torchqat.runs.trained import trained_state
from torchqat.runs.variants import initialized_name, naive_model, naive_name, trained_name
from torchqat.training.loop import TrainingLoop
from torchqat.training.weight_rates import weight_rates


def run(
    recipe: str | Path | Recipe,
    model: str = "",
    data: str = "",
    output: str | Path = "",
    resume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    dtype: str = "",
    device: str = "",
    settings: Mapping[str, Any] | Iterable[str] = (),
    steps: int | None = None,
    push_to_hub: str = "",
    training: bool = True,
) -> Report:
    """All that a recipe says: baseline, plain rounding, training, export, verification; in mode auto, the search.

    With ``training=False`` it is what ``torchqat ptq`` does: post-training quantization alone, whatever the recipe's
    ``train`` section says, or does not say: a recipe without one trains.

    Args:
        recipe: The name of one that ships, such as ``int4``, a YAML file, or a recipe that was loaded, of which settings
            that were made in Python count; it is left as it is.
        model: Hugging Face folder, hub id or ``module:function``, in place of the recipe's.
        data: File or folder of text, jsonl or Parquet, or a data set of the Hub, in place of the recipe's.
        output: The run's folder; ``runs/<model>-<recipe>`` when empty.
        resume: Go on with the run that is there.
        restart: Delete the run that is there, and begin again.
        progress: Where news goes; standard error when ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of scales in checkpoints and of what is not quantized. When empty,
            what the model came in, if it was trained in float32 and the scales fit; else what it was trained in.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, in place of the recipe's.
        settings: As ``load_recipe`` takes them, such as ``{"train.learning_rate": 1e-4}``.
        steps: Optimizer steps, in place of the recipe's steps or epochs.
        push_to_hub: ``org/name`` on the Hub, where the model that the run ends with goes if it meets the recipe's limits.
        training: Whether anything is trained, the float control among it.

    Returns:
        What was measured, as the folder's ``report.json`` has it, and its ``report.html`` shows it.

    Raises:
        RecipeError: The recipe is none, or does not fit the model.
        UserError: Model, data or folder are not what they must be: the folder has a run, and neither ``resume`` nor
            ``restart`` is set, or it was made of something else; or ``push_to_hub`` cannot be written to; or ``steps`` are
            given without training. Nothing is written then.
    """
    run = run_of(recipe, model, data, output, progress, dtype, device, settings, steps, training)
    return follow(run, resume, restart, push_to_hub)


# Options that are in place of keys of a recipe.
_OPTIONS = {
    "model.path": "model",
    "data.train": "data",
    "device": "device",
    "train.steps": "steps",
    "train.epochs": "steps",
}


def run_of(
    recipe: str | Path | Recipe,
    model: str = "",
    data: str = "",
    output: str | Path = "",
    progress: Progress | None = None,
    dtype: str = "",
    device: str = "",
    settings: Mapping[str, Any] | Iterable[str] = (),
    steps: int | None = None,
    training: bool = True,
) -> Run:
    """The run that these options mean, which has done nothing yet."""
    settings = as_settings(settings)
    _check_said_once(settings, {"model": model, "data": data, "device": device, "steps": steps})
    loaded = _loaded(recipe, settings, steps)
    if not training:
        if steps:
            raise UserError(f"steps must not be given where training is False, but is {steps}.")
        loaded.train.steps, loaded.train.epochs, loaded.train.control = 0, None, False
    if model:
        loaded.model.path, loaded.model.scratch = str(model), None
    if data:
        loaded.data.train, loaded.data.sources = str(data), []
    if device:
        loaded.device = device
    run = Run(loaded, Path(output or default_folder(loaded)), progress or Progress())
    run.dtype = dtype
    return run


def _loaded(recipe: str | Path | Recipe, settings: list[str], steps: int | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if settings or steps is not None:
            raise UserError("settings and steps must not be given for a recipe that is loaded already, but are.")
        return copy(recipe)
    loaded = load_recipe(recipe, settings)
    if steps is None:
        return loaded
    instead = [] if loaded.train.epochs is None else ["train.epochs="]
    return load_recipe(recipe, [*settings, *instead, f"train.steps={steps}"])


def _check_said_once(settings: list[str], options: dict[str, Any]) -> None:
    """Whether a setting says what one of ``options`` says."""
    for setting in settings:
        option = _OPTIONS.get(setting.partition("=")[0], "")
        if options.get(option) not in (None, ""):
            raise UserError(
                f"{setting} must not be set where {option} is given, which is in its place, but it is {options[option]}."
            )


def follow(run: Run, resume: bool = False, restart: bool = False, push_to_hub: str = "") -> Report:
    """What the recipe of ``run`` says, or what ``decide`` does; returns the report."""
    if push_to_hub:
        check_hub(push_to_hub)
    with run.progress.listens(), run.opened(resume, restart):
        report = decide(run) if run.recipe.mode == "auto" else _follow(run)
        write_page(run)
        if push_to_hub:
            push_last(run, push_to_hub)
    return report


def _follow(run: Run) -> Report:
    """What the recipe says, step by step."""
    recipe = run.recipe
    measure_baseline(run)
    for bits in recipe.evaluate.compare:
        _naive(run, bits)
    _initialized(run)
    if recipe.train.control:
        _control(run)
    _trained(run)
    if recipe.evaluate.sensitivity:
        _sensitivity(run)
    return run.report()


def _sensitivity(run: Run) -> None:
    if not run.report().sensitivity:
        measure_sensitivity(run, compared_widths(run.plan))


def _naive(run: Run, bits: int) -> None:
    """Round to nearest at ``bits``, without training, and export it."""
    name = naive_name(bits)
    if run.report().variant(name):
        return
    run.progress.say(f"Rounding to int{bits} without training")
    others = sorted({layer.weight.dtype for layer in run.plan.layers if layer.weight and not layer.weight.takes_widths})
    method = " and ".join([f"INT{bits}", *(name.upper() for name in others)]) + " round to nearest"
    variant = make_variant(run, name, method, naive_model(run, bits), f"-{name}")
    with run.changed_report() as report:
        report.put(variant)


def _initialized(run: Run) -> None:
    """What post-training quantization alone gives, exported."""
    name, trains = initialized_name(run), run.recipe.train.steps > 0
    done = run.report().variant(name)
    if done and not trains:
        engine = _in_engine(run, lambda: run.prepared(run.plan), f"-{name}")
        with run.changed_report() as report:  # limits may have changed since
            report.engine = engine
            judge(run, report, done)
    if done or (trains and not run.recipe.initialize.needs_data):
        return
    model = run.prepared(run.plan)
    method = f"{run.width_title} {run.recipe.initialize.method}"
    variant = make_variant(run, name, method, model, f"-{name}")
    if not trains:
        export_others(run, model, variant, f"-{name}")
    samples = {} if trains else samples_of(run, model, variant)
    engine = {} if trains else _in_engine(run, lambda: model, f"-{name}")
    with run.changed_report() as report:
        report.put(variant)
        if not trains:
            report.samples, report.engine = samples, engine
            judge(run, report, variant)


def _control(run: Run) -> None:
    """The float model fine-tuned for the same steps on the same batches with cross-entropy."""
    if run.report().variant("float-control"):
        return
    model = run.fresh_model().to(run.device)
    plain = DistillSection()
    plain.loss = "cross_entropy"
    train = copy(run.recipe.train)
    if train.learning_rate is None:  # as what it is compared with
        _, train.learning_rate = weight_rates(run.prepared(run.plan), train)

    def loss(batch: Batch) -> Tensor:
        with products_in_precision(run):
            return run.kind.loss(plain, run.kind.outputs(model, batch), None, batch)

    loop = TrainingLoop(
        model,
        loss,
        run.data.train,
        train,
        checkpoint=run.folder / "checkpoints" / "control.pt",
        identity=run.identity,
        on_step=run.progress.steps("Fine-tuning the float control", run.recipe.train.steps),
    )
    figures = run.measure(loop.run())
    bits = 8.0 * next(model.parameters()).element_size()
    with run.changed_report() as report:
        size = int(report.baseline["bytes"])
        report.put(Variant.of("float-control", "full precision, fine-tuned as long", bits, figures, size))


def _trained(run: Run) -> None:
    """Train, export, verify and measure."""
    if run.recipe.train.steps == 0:
        return
    name, bits = trained_name(run), run.exported_widths
    variant, samples = run.report().variant(name), run.report().samples
    if variant is None:
        model = fine_tune(run)
        variant = make_variant(run, name, f"{run.width_title} QAT", model, "")
        export_others(run, model, variant, "")
        samples = samples_of(run, model, variant)
        engine = _in_engine(run, lambda: model, "")
    else:
        engine = _in_engine(run, lambda: trained_state(run), "")
    with run.changed_report() as report:  # where it was measured before, limits may have changed since
        naive = report.variant(naive_name(bits[0])) if len(bits) == 1 else None
        if naive and variant.recovered is None:
            variant.recovered = recovered(report.baseline["perplexity"], naive, variant)
        judge(run, report, variant)
        report.samples, report.engine = samples, engine
        report.put(variant)


def _in_engine(run: Run, model: Callable[[], nn.Module], suffix: str) -> dict[str, Any]:
    """What the model that the run ends with costs in the recipe's engine; asked again where it was another or not there."""
    kept = run.report().engine
    if kept.get("name", "") == run.recipe.engine and "note" not in kept:
        return kept
    return measured_in_engine(run, model(), {f: run.folder / f"exports/{f}{suffix}" for f in run.recipe.exports})
