"""``export``, ``verify`` and ``evaluate``: what comes after training."""

from dataclasses import asdict
from pathlib import Path

import typer

from torchqat.cli.options import DEVICE, DTYPE, PUSH
from torchqat.cli.output import result, say
from torchqat.verification.engines.question import speed_rows


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)
    app.command()(evaluate)


def export(
    run: str = typer.Argument(..., metavar="RUN", help="A run's folder."),
    format: str = typer.Option(
        "compressed-tensors",
        "--format",
        help="compressed-tensors, compressed-tensors-0.18, gptq, gptq_v2, awq, gguf, mlx, modelopt, onnx, safetensors, "
        "mxfp4 or dense (docs/formats.md).",
    ),
    output: str = typer.Option("", "--output", help="Where to write; RUN/exports/<format> when not given."),
    max_shard_size: str = typer.Option("5GB", "--max-shard-size", help="Larger checkpoints become several files."),
    embeddings: str = typer.Option("f16", "--embeddings", help="gguf: f16 or q8_0, of embedding and output head."),
    ternary: str = typer.Option("tq2_0", "--ternary", help="gguf: tq2_0 or tq1_0 (smaller), of layers of -1, 0 and 1."),
    dtype: str = DTYPE,
    device: str = DEVICE,
    push_to_hub: str = PUSH,
) -> None:
    """Write a run's trained model as a checkpoint of any format that can hold it, and read it back."""
    from torchqat.checkpoints.dtype import dtype_named
    from torchqat.checkpoints.export import check_exports, check_of_gguf
    from torchqat.checkpoints.replaced import check_replaceable
    from torchqat.runs.cards import put_card
    from torchqat.runs.coverage import coverage
    from torchqat.runs.exported import export_run
    from torchqat.runs.hub import check_hub, push
    from torchqat.runs.restore import open_run
    from torchqat.runs.steps import remember_export
    from torchqat.runs.variants import last_name

    check_of_gguf(format, embeddings, ternary)
    if push_to_hub:
        check_hub(push_to_hub)
    opened = open_run(Path(run), device)
    folder = Path(output or Path(run) / "exports" / format)
    check_replaceable(folder)
    asked = dtype_named(dtype)
    check_exports(
        opened.float_model.outline, opened.plan, [format], opened.kind.writes_text, asked, opened.kind.pooling
    )
    options = {"max_shard_size": max_shard_size, "embeddings": embeddings, "ternary": ternary, "dtype": asked}
    checked = export_run(opened, folder, format, **options)
    for sentence in coverage(opened.plan):
        say(sentence)
    _print_verification(folder, checked)
    say(f"sha256 {remember_export(opened, folder, last_name(opened))}")
    put_card(opened, folder, opened.report().variant(last_name(opened)), push_to_hub)
    if push_to_hub:
        push(folder, push_to_hub, say)


def verify(
    folder: str = typer.Argument(..., metavar="DIR", help="An exported checkpoint; with --reference anybody's."),
    run: str = typer.Option("", "--run", help="The run it came from; found above DIR when not given."),
    variant: str = typer.Option("", "--variant", help="Which model of the run; by its report when not given."),
    engine: str = typer.Option(
        "",
        "--engine",
        help="transformers, vllm, llama.cpp, mlx, openvino, onnxruntime-genai, executorch, onnxruntime, or reader for "
        "the tensors alone; by default what fits.",
    ),
    bench: bool = typer.Option(False, "--bench", help="Time and memory in the engine, beside the float model's."),
    reference: str = typer.Option("", "--reference", help="Compare with this float model, in place of a training."),
    data: str = typer.Option("", "--data", help="With --reference: text to measure perplexity and KL on."),
    samples: int = typer.Option(0, "--samples", min=0, help="Of --data only so many windows, spread evenly."),
    kind: str = typer.Option("causal_lm", "--kind", help="With --reference: the kind of model, as recipes call it."),
    device: str = DEVICE,
) -> None:
    """Compare a checkpoint, bit for bit, with what training used, and an engine's answers with the training forward's."""
    from torchqat.cli.reference import verify_beside
    from torchqat.errors import UserError
    from torchqat.runs.restore import exported_model, run_above
    from torchqat.runs.steps import verify_in_engine
    from torchqat.runs.streamed import is_streamed, verify_streamed

    if reference:
        if run or variant or engine or bench:
            raise UserError(
                "--reference compares with a float model; --run, --variant, --engine and --bench are of a run."
            )
        if samples and not data:
            raise UserError(f"--samples is how much of --data is measured on, which is not given, but it is {samples}.")
        verify_beside(folder, reference, data, kind, samples, device)
        return
    if data or samples:
        raise UserError("--data and --samples are measured on beside a float model, which --reference must name.")
    root = run_above(Path(folder), run)
    if is_streamed(root):
        if engine not in ("", "reader") or bench:
            raise UserError(
                f"The run in {root} was streamed, so that its checkpoint can be read, but not compared in engines."
            )
        _print_verification(Path(folder), verify_streamed(root, Path(folder)))
        return
    opened, model = exported_model(Path(folder), run, variant, device)
    _print_verification(Path(folder), verify_in_engine(opened, Path(folder), model, engine, bench))


def evaluate(
    model: str = typer.Argument(..., metavar="MODEL", help="A folder or hub id, quantized or not."),
    data: str = typer.Option(
        ...,
        "--data",
        help="What to measure on, all of it: a file or folder of text, jsonl or Parquet, org/name of the Hub, or "
        "python-stdlib.",
    ),
    reference: str = typer.Option("", "--reference", help="Float model to measure KL and top-1 agreement against."),
    samples: int = typer.Option(
        0, "--samples", min=0, help="Only so many windows, spread evenly; 0 is all of the data."
    ),
    sequence_length: int = typer.Option(
        0, "--sequence-length", min=0, help="Tokens of a window; 2048 or the model's limit when not given."
    ),
    kind: str = typer.Option(
        "causal_lm", "--kind", help="causal_lm, classifier, sentence_encoder or seq2seq: what the model is for."
    ),
    loss_on: str = typer.Option("answers", "--loss-on", help="Of conversations: answers, or all tokens."),
    task: str = typer.Option("", "--task", help="Your own task: a jsonl file, or module:function."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or cuda:N: where to compute."),
) -> None:
    """Perplexity on the data, the score on your task and, with --reference, the distance from the float model."""
    from torchqat import evaluate as measure
    from torchqat.data.batch import largest_of, length_of
    from torchqat.data.tasks import load_task
    from torchqat.errors import UserError
    from torchqat.model.placement import device_for
    from torchqat.model.vocabulary import check_positions, check_tokens
    from torchqat.precision import emulated

    if sequence_length == 1:
        raise UserError("--sequence-length must be at least 2, or 0 for 2048 or the model's limit, but is 1.")
    if loss_on not in ("answers", "all"):
        raise UserError(f"--loss-on must be answers or all, but is {loss_on}.")
    asked, notes = _checked_kind(kind, loss_on, bool(reference or task)), []
    own = load_task(task) if task else None
    load = _loader(asked, notes.append)
    loaded, tokenizer = load(model), asked.load_tokenizer(model)
    length = sequence_length or _length_of(loaded)
    batches, counted = _measured(asked, model, tokenizer, data, length, samples, loss_on, notes)
    if tokenizer is not None:
        check_tokens(loaded, tokenizer, max(map(largest_of, batches)), model)
    if beyond := check_positions(loaded, max(map(length_of, batches)), model):
        notes.append(beyond)
    asked.check_given(loaded, batches, data)
    other = load(reference) if reference else None
    place = device_for(device, [one for one in (loaded, other) if one is not None], say)
    dtype = getattr(loaded, "dtype", None) or next(loaded.parameters()).dtype  # of a function's
    notes += [said] if (said := emulated(place, dtype, f"The dtype of {model}")) else []
    for note in notes:
        say(f"Note: {note}")
    figures = measure(loaded, batches, other, asked, place)
    found = {"perplexity": figures.perplexity, "tokens": figures.tokens, "sequence_length": length, "notes": notes}
    say(_of_data(asked, figures, counted, length))
    if other is not None:
        found |= {"kl": figures.kl, "top1_agreement": figures.top1_agreement}
        unit = "a token" if asked.writes_text else "a prediction"
        say(f"KL to the reference {figures.kl:.6f} nats {unit}, top-1 agreement {figures.top1_agreement:.2%}")
        if figures.cosine is not None:
            found["cosine"] = figures.cosine
            say(f"cosine between the vectors {figures.cosine:.6f}")
    if own is not None:
        found |= _on_task(own, asked, loaded, other, tokenizer, place)
    result(found)


def _checked_kind(name: str, loss_on: str, compares: bool):
    """The kind called ``name``, where it can be measured so."""
    from torchqat.errors import UserError
    from torchqat.kinds import KINDS

    if name not in KINDS:
        *some, last = KINDS
        raise UserError(f"--kind must be {', '.join(some)} or {last}, but is {name}.")
    kind = KINDS[name]()
    if loss_on != "answers" and not kind.writes_text:
        raise UserError(f"--loss-on is of conversations, which a {name} does not answer.")
    if name == "sentence_encoder" and not compares:
        raise UserError(
            "A sentence_encoder is measured by --reference, a float model, or by --task, but neither is given."
        )
    return kind


def _loader(kind, note):
    """Loads models of ``kind``; of those that write text, as engines' folders have them, too."""
    from torchqat.runs.restore import load_any

    return (lambda path: load_any(path, note)) if kind.writes_text else (lambda path: kind.load(path, "float32", note))


def _measured(kind, model: str, tokenizer, data: str, length: int, samples: int, loss_on: str, notes: list) -> tuple:
    """What is measured on, and which predictions count, in words."""
    from torchqat.data.measured import load_measured
    from torchqat.data.sources import Source

    if not kind.writes_text:
        return kind.measured(data, model, length, tokenizer, samples), ""
    found = load_measured(tokenizer, Source(data), length, samples, loss_on, say)
    notes += found.notes
    return found.batches, found.counted


def _of_data(kind, figures, counted: str, length: int) -> str:
    if figures.perplexity is None:
        return f"{figures.tokens} examples, of at most {length} tokens"
    if kind.writes_text:
        which = f" {counted}" if counted else ""
        return (
            f"perplexity {figures.perplexity:.4f} over {figures.tokens} tokens{which}, in sequences of at most {length}"
        )
    return f"perplexity {figures.perplexity:.4f} over {figures.tokens} predictions"


def _length_of(model) -> int:
    """2048 tokens, or as many as the model takes."""
    config = getattr(model, "config", None)
    return min(2048, getattr(config.get_text_config(), "max_position_embeddings", 2048)) if config else 2048


def _on_task(task, kind, model, reference, tokenizer, device) -> dict:
    """The score on the user's task and, beside a reference, the difference with its interval."""
    from torchqat.evaluation.bootstrap import bootstrap
    from torchqat.model.placement import on_device

    with on_device(model, device):
        scores = task.scores(model, tokenizer, kind.rank)
    found = {"task": sum(scores) / len(scores), "examples": len(scores)}
    say(f"{task.name}: {found['task']:.2%} of {len(scores)} examples")
    if reference is None:
        return found
    with on_device(reference, device):
        before = task.scores(reference, tokenizer, kind.rank)
    change = bootstrap([a - b for a, b in zip(scores, before, strict=True)])
    noise = ", within the noise" if change.contains(0.0) else ""
    say(f"{change.value:+.2%} from the reference ({change.low:+.2%} to {change.high:+.2%}){noise}")
    flips = sum(a != b for a, b in zip(scores, before, strict=True)) / len(scores)
    say(f"{flips:.2%} of the examples changed")
    return found | {"task_change": [change.value, change.low, change.high], "flip_rate": flips}


def _print_verification(folder: Path, verification) -> None:
    say(f"{folder}: {verification}.")
    if verification.speed is not None:
        columns = {"float": verification.baseline, "export": verification.speed}
        say(speed_table({name: speed for name, speed in columns.items() if speed is not None}))
    result({"folder": str(folder), "ok": verification.ok, **asdict(verification)})
    if not verification.ok:
        raise typer.Exit(1)


def speed_table(columns) -> str:
    """Time and memory, a column each."""
    rows = [("", list(columns)), *speed_rows(columns)]
    return "\n".join(f"{label:<22}" + "".join(f"{cell:>12}" for cell in cells) for label, cells in rows)
