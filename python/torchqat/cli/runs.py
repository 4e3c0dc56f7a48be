"""``check``, ``run``, ``ptq`` and ``train``: from a recipe to a run's folder."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import typer

from torchqat.cli.options import DATA, DEVICE, DTYPE, MODEL, OUTPUT, PUSH, RECIPE, RESTART, RESUME, RUNS, SET, STEPS
from torchqat.cli.output import is_json, result, say
from torchqat.collector import no_collection


def register(app: typer.Typer) -> None:
    app.command()(check)
    app.command()(run)
    app.command()(ptq)
    app.command()(train)
    app.command()(report)


@no_collection()
def check(recipe: str = RECIPE, model: str = MODEL, settings: list[str] = SET) -> None:
    """Validate a recipe and, where its model is at hand, print the plan and the memory that training takes."""
    import torchqat
    from torchqat.checkpoints.export import check_exports
    from torchqat.device import find_device
    from torchqat.errors import UserError
    from torchqat.kinds import find_kind
    from torchqat.precision import emulated_choices
    from torchqat.runs.own_optimizer import try_own_optimizer
    from torchqat.runs.training_needs import training_needs
    from torchqat.training.checks import check_training
    from torchqat.verification.engines import check_engine

    loaded, notes = torchqat.load_recipe(recipe, settings), []
    check_training(loaded, notes.append)
    with suppress(UserError):  # a recipe may be meant for another machine
        notes += emulated_choices(loaded, find_device(loaded.device, lambda _: None))
    path, kind = model or loaded.model.path, find_kind(loaded.model.kind)
    if path:
        found = kind.outline(path, loaded.model.dtype, notes.append)
    elif loaded.model.scratch is not None:
        from torchqat.runs.scratch import new_model

        found = new_model(loaded.model.scratch, loaded.model.scratch.vocabulary, loaded.train.seed)
    else:
        found = None
    needs = None
    if found is not None:
        plan = torchqat.make_plan(found, loaded)
        notes += check_exports(found, plan, loaded.exports, kind.writes_text, pooling=kind.pooling)
        check_engine(loaded.engine, found, plan.layers, plan.kv_cache)
        try_own_optimizer(loaded, plan, found)
        needs = training_needs(loaded, plan, found)
        say(str(plan).rstrip("\n") + (f"\n{needs}" if needs else ""))
    for note in notes:
        say(f"Note: {note}")
    say(f"{recipe} is valid{'.' if found is not None else '; --model shows which layers it means.'}")
    layers = [layer.name for layer in plan.layers] if found else []
    memory = {"training_bytes": {"total": needs.memory.total, **asdict(needs.memory)}} if needs else {}
    result({"recipe": recipe, "valid": True, "layers": layers, "notes": notes, **memory})


def run(
    recipe: str = RECIPE,
    model: str = MODEL,
    data: str = DATA,
    output: str = OUTPUT,
    resume: bool = RESUME,
    restart: bool = RESTART,
    settings: list[str] = SET,
    steps: int | None = STEPS,
    dtype: str = DTYPE,
    device: str = DEVICE,
    push_to_hub: str = PUSH,
) -> None:
    """Baseline, plain rounding, quantization-aware training, export, verification and report."""
    from torchqat.runs.flow import run_of

    options = {"dtype": dtype, "device": device, "settings": settings, "steps": steps}
    _follow_and_show(run_of(recipe, model, data, output, **options), resume, restart, push_to_hub)


def ptq(
    recipe: str = RECIPE,
    model: str = MODEL,
    data: str = DATA,
    output: str = OUTPUT,
    resume: bool = RESUME,
    restart: bool = RESTART,
    stream: bool = typer.Option(False, "--stream", help="In the memory of one block: checkpoint alone, no figures."),
    settings: list[str] = SET,
    dtype: str = DTYPE,
    device: str = DEVICE,
    push_to_hub: str = PUSH,
) -> None:
    """Post-training quantization alone: the recipe without its training."""
    from torchqat.runs.flow import run_of

    run = run_of(recipe, model, data, output, dtype=dtype, device=device, settings=settings, training=False)
    if stream:
        _stream_and_show(run, resume, restart, push_to_hub)
    else:
        _follow_and_show(run, resume, restart, push_to_hub)


def _follow_and_show(run, resume: bool, restart: bool, push_to_hub: str) -> None:
    from torchqat.reports.console import print_report
    from torchqat.runs.flow import follow

    report = follow(run, resume, restart, push_to_hub)
    if not is_json():
        print_report(report)
    say(f"The run is in {run.folder}; report.html there shows it.")
    result({"folder": str(run.folder), **report.to_json()})


def _stream_and_show(run, resume: bool, restart: bool, push_to_hub: str) -> None:
    from torchqat.runs.streamed import stream

    found = stream(run, resume, restart, push_to_hub)
    result(
        {
            "folder": str(found.folder),
            "layers": found.layers,
            "bits_per_weight": found.bits_per_weight,
            "bytes": found.bytes,
        }
    )
    say(
        f"{found.folder}: {found.layers} layers equal bit for bit; {found.bits_per_weight:.3f} bits per weight, "
        f"{found.bytes / 1e6:.2f} MB in all."
    )


def report(
    runs: list[str] = RUNS,
    pictures: str = typer.Option("", "--pictures", help="Also write each picture as SVG and PNG into this folder."),
) -> None:
    """Print what runs have measured, and write each one's report.html again."""
    from torchqat.reports.console import print_comparison, print_report
    from torchqat.reports.html import load_report, write_html, write_pictures

    found = {run: load_report(Path(run)) for run in runs}
    result({run: report.to_json() for run, report in found.items()})
    if is_json():
        pass
    elif len(found) == 1:
        (one,) = found.values()
        print_report(one)
        if not one.baseline and not one.variants:
            say(f"{runs[0]} has measured nothing: torchqat run and ptq measure, train only trains.")
    else:
        names = [Path(run).resolve().name for run in found]
        unique = len(set(names)) == len(names)
        print_comparison(
            {name if unique else run: report for name, (run, report) in zip(names, found.items(), strict=True)}
        )
    for run in found:
        say(f"{write_html(Path(run))}")
        if pictures:
            target = Path(pictures) / Path(run).name if len(found) > 1 else Path(pictures)
            for path in write_pictures(Path(run), target):
                say(f"{path}")


def train(
    recipe: str = RECIPE,
    model: str = MODEL,
    data: str = DATA,
    output: str = OUTPUT,
    resume: bool = RESUME,
    restart: bool = RESTART,
    settings: list[str] = SET,
    steps: int | None = STEPS,
    device: str = DEVICE,
) -> None:
    """Only the fine-tuning, on one process or on those that torchrun starts; `torchqat export RUN` writes the checkpoint."""
    from torchqat.runs.fine_tune import fine_tune
    from torchqat.runs.flow import run_of
    from torchqat.runs.page import write_page
    from torchqat.training.processes import is_first, processes

    with processes():
        run = run_of(recipe, model, data, output, device=device, settings=settings, steps=steps)
        run.progress.quiet = not is_first()
        with run.progress.listens(), run.opened(resume, restart):
            fine_tune(run)
            if is_first():
                write_page(run)
        if not is_first():
            return
    say(f"The trained state is in {run.folder / 'checkpoints'}.")
    result({"folder": str(run.folder)})
