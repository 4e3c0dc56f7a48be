"""A real language model at 8, 4, 3 and 2 bits: post-training methods, training that starts from them, and peers.

    python benchmarks/real_lm.py [--formats w4g64 w3g64 w2g32] [--methods rtn layer model trained] [--seeds 1]
        [--peer llm_compressor=PYTHON] [--peer gptqmodel=PYTHON] [--peer auto_round=PYTHON] [--write FILE]

The model is SmolLM2-135M-Instruct off its lattice (``real_model.py``, made if it is not there). Calibration and training
texts, and those that are held out, are of different documents of English prose and code (``texts.py``). Each method is
judged by its KL to the float model, perplexity over windows of 512 and 2048 tokens and the share of equal first choices;
and by three tasks (``lm_tasks.py``): how many questions it answers, and on how many it changes from right to wrong or back
(flips). Each --peer names the Python of an environment that has it; it rounds the same weights on the same tokens. A cell
is kept as soon as it is measured, so an interrupted benchmark goes on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
import torchqat
from common import RESULTS, machine, said_of, suffix, table
from lm_tasks import Tasks
from real_model import CACHE, float_model
from texts import documents, written
from torch import nn
from torchqat._library import parse_recipe
from torchqat.evaluation.bootstrap import bootstrap
from torchqat.files import write_json
from torchqat.precision import products
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from worker import rounded_by

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "real_lm"


def weight(bits: int, group: int) -> dict:
    return {"dtype": f"int{bits}", "group_size": group, "grid": "full", "scale": "learned"}


# Of each format: what a recipe says of its layers, and the bits and the group that peers are asked for; 128 does not divide
# the model's 576 columns.
FORMATS = {
    "w4g64": ({"weight": weight(4, 64)}, (4, 64)),
    "w4g32": ({"weight": weight(4, 32)}, (4, 32)),
    "w3g64": ({"weight": weight(3, 64)}, (3, 64)),
    "w2g32": ({"weight": weight(2, 32)}, (2, 32)),
    "w2g64": ({"weight": weight(2, 64)}, (2, 64)),
    "w8a8": ({"weight": {"dtype": "int8"}, "input": {"dtype": "int8"}}, None),
    "w4a8": ({"weight": weight(4, 64), "input": {"dtype": "int8"}}, None),
}
# Of each method: its name in the table, and what ``initialize`` says.
METHODS = {
    "rtn": ("round to nearest", {"method": "rtn"}),
    "mse": ("least squared error", {"method": "mse"}),
    "awq": ("AWQ", {"method": "awq"}),
    "layer": ("GPTQ of each layer's output (the default at 2 bits)", {"method": "gptq", "objective": "layer"}),
    "model": ("GPTQ of the model's output (the default from 3 bits)", {"method": "gptq", "objective": "model"}),
    "trained": ("trained from the default", {"method": "gptq"}),
}
# What each peer does on a processor, and how its row is called.
PEERS = {
    "llm_compressor": ("gptq", "llm-compressor, GPTQ"),
    "gptqmodel": ("gptq", "gptqmodel, GPTQ"),
    "auto_round": ("signround", "auto-round, 200 iterations"),
}


class Bench:
    """One draw of calibration and training texts: its runs, and what the float model says to windows and questions.

    Args:
        options: Of the command line.
        seed: Of the order of the documents, and of training.
        layers: Of each format, what a recipe says of its layers.
    """

    def __init__(self, options: argparse.Namespace, seed: int, layers: dict[str, dict | list]):
        self.options, self.seed, self.layers = options, seed, layers
        self.folder = OUTPUT / f"{options.samples}x{options.length}-{seed}"
        self.texts = {part: written(shuffled(part, seed), self.folder / part) for part in ("train", "held-out")}
        self.model, self.shared = float_model(), None
        form = next(iter(layers))
        self.first = self.run(form, {"method": "rtn"})
        self.shared = self.first.float_model
        self.long = self.run(
            form, {"method": "rtn"}, held_out={"samples": long_windows(options), "sequence_length": 2048}
        ).data.evaluation

    @cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.first.tokenizer, CACHE / "texts", self.options.questions)

    @cached_property
    def float_figures(self) -> dict:
        return self.kept("float", lambda: self.first.original)

    def run(self, form: str, initialize: dict, steps: int = 0, held_out: dict | None = None) -> Run:
        windows = {"samples": self.options.held_out, "sequence_length": 512}
        recipe = {
            "version": 1,
            "model": {"path": str(self.model)},
            "data": {
                "train": str(self.texts["train"]),
                "calibration": {"samples": self.options.samples, "sequence_length": self.options.length},
                "evaluation": {"path": str(self.texts["held-out"]), **(held_out or windows)},
            },
            "layers": self.layers[form],
            "initialize": initialize,
            "train": {
                "steps": steps, "batch_size": 2, "sequence_length": 512, "mixed_precision": mixed_precision(),
                "validate_every": max(1, steps // 4), "seed": self.seed,
            },
        }  # fmt: skip
        folder = self.folder / f"{form}-{initialize['method']}-{steps}"
        return Run(parse_recipe(json.dumps(recipe), "benchmarks/real_lm.py"), folder, Progress(quiet=True), self.shared)

    def kept(self, name: str, make: Callable[[], nn.Module | None]) -> dict | None:
        """What the model of ``make`` does, measured once; ``None`` where there is none."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return json.loads(path.read_text())
        begun = time.monotonic()
        model = make()
        if model is None:
            return None
        figures = {"seconds": time.monotonic() - begun, **self.measured(model)}
        write_json(path, figures)
        print(name, {key: value for key, value in figures.items() if not isinstance(value, dict | list)}, flush=True)
        return figures

    def measured(self, model: nn.Module) -> dict:
        found = self.first.measure(model)
        long = torchqat.evaluate(model, self.long)
        return {
            "kl": found.kl, "kls": found.kls, "perplexity": found.perplexity, "perplexity of 2048": long.perplexity,
            "top-1": found.top1_agreement, "answers": self.tasks.answers(model),
        }  # fmt: skip

    def ours(self, form: str, method: str) -> dict:
        steps = self.options.steps if method == "trained" else 0
        run = self.run(form, METHODS[method][1], steps)
        name = f"{form}-{method}" + (f"-{steps}" if steps else "")
        return self.kept(name, lambda: fine_tune(run) if steps else run.prepared(run.plan))

    def peer(self, form: str, name: str) -> dict | None:
        """What a peer gives, in its own environment; ``None`` where it cannot."""
        asked = FORMATS[form][1]
        if asked is None:
            return None
        return self.kept(f"{form}-{name}", lambda: self.rounded(name, *asked))

    def rounded(self, name: str, bits: int, group: int) -> nn.Module | None:
        python = self.options.peer.get(name)
        if python is None:
            return None
        found = rounded_by(
            python, name, self.model, self.first.data.calibration, bits, group, PEERS[name][0], self.folder
        )
        if found is None:
            return None
        model = self.first.fresh_model().eval()
        model.load_state_dict(found[0], strict=False)  # a tied head is not repeated
        return model


def long_windows(options: argparse.Namespace) -> int:
    """Half as many tokens as in windows of 512."""
    return max(1, options.held_out // 8)


def mixed_precision() -> str:
    """Products in bfloat16 where the processor multiplies it."""
    return "bfloat16" if products(torch.device("cpu"), torch.bfloat16).multiplied else "none"


def shuffled(part: str, seed: int) -> list[str]:
    """The documents of a part, those that train in an order of ``seed``."""
    found = documents(part, CACHE / "texts")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed if part == "train" else 0))
    return [found[index] for index in order.tolist()]


def flips(answers: dict[str, list[float]], of_float: dict[str, list[float]]) -> float:
    """Share of questions that one of the two answers right and the other one wrong (Dutta et al., arXiv 2407.09141)."""
    pairs = [pair for name, given in answers.items() for pair in zip(given, of_float[name], strict=True)]
    return statistics.mean(a != b for a, b in pairs)


def median(values: list[float], form: str) -> str:
    """Of the seeds, and their spread where there are several."""
    text = format(statistics.median(values), form)
    return text if len(values) == 1 else f"{text} ({min(values):{form}}–{max(values):{form}})"


def row(name: str, found: list[dict], of_float: list[dict], beside: float | None) -> list[str]:
    """A method's figures: medians over seeds, tasks by the questions of all seeds."""
    kl = statistics.median(figures["kl"] for figures in found)
    among = bootstrap([value for figures in found for value in figures["kls"]])
    cells = [name, f"{median([figures['kl'] for figures in found], '.4f')} [{among.low:.4f}, {among.high:.4f}]"]
    cells.append(f"{kl / beside:.2f}" if beside else "")
    for key, form in (("perplexity", ".2f"), ("perplexity of 2048", ".2f"), ("top-1", ".1%")):
        cells.append(median([figures[key] for figures in found], form))
    for task in of_float[0]["answers"]:
        pairs = list(zip(found, of_float, strict=True))
        given = [value for figures, _ in pairs for value in figures["answers"][task]]
        changes = [a - b for f, g in pairs for a, b in zip(f["answers"][task], g["answers"][task], strict=True)]
        change = bootstrap(changes)
        cells.append(f"{statistics.mean(given):.1%} [{change.low:+.1%}, {change.high:+.1%}]")
    cells.append(
        f"{statistics.mean(flips(f['answers'], g['answers']) for f, g in zip(found, of_float, strict=True)):.1%}"
    )
    return [*cells, median([figures["seconds"] for figures in found], ".0f")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128, help="windows that calibrate")
    parser.add_argument("--length", type=int, default=512, help="tokens of one")
    parser.add_argument("--held-out", type=int, default=32, help="windows of 512 tokens that judge")
    parser.add_argument("--questions", type=int, default=200, help="of each task")
    parser.add_argument("--steps", type=int, default=240, help="of training, 1,024 tokens each")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--write", action="store_true", help="put them in benchmarks/results/real_lm-cpu.md")
    parser.add_argument("--note", default="", help="what falls short, in words, for that page")
    options = parser.parse_args()
    command = " ".join(["python benchmarks/real_lm.py", *said(options)])
    options.peer = dict(peer.split("=", 1) for peer in options.peer)
    layers = {name: layers for name, (layers, _) in FORMATS.items()}
    benches = [Bench(options, seed, layers) for seed in range(options.seeds)]
    of_float, found_of = [bench.float_figures for bench in benches], {}
    for form in options.formats:
        ours = {name: [bench.ours(form, name) for bench in benches] for name in options.methods}
        peers = {name: [bench.peer(form, name) for bench in benches] for name in PEERS}
        peers = {name: found for name, found in peers.items() if None not in found}
        best = min((statistics.median(f["kl"] for f in found) for found in peers.values()), default=None)
        rows = [row("float", of_float, of_float, None)]
        rows += [row(METHODS[name][0], found, of_float, best) for name, found in ours.items()]
        rows += [row(PEERS[name][1], found, of_float, best) for name, found in peers.items()]
        text = "\n\n".join(filter(None, [what_was_measured(options), table(HEADER, rows), options.note]))
        print(f"## {form.upper()}\n\n{text}", flush=True)
        figures = {name: [drop_lists(f) for f in found] for name, found in {**ours, **peers}.items()}
        found_of[form] = {"machine": machine(), "command": command, "text": text, "figures": figures}
    if options.write:
        write(found_of)


def write(found: dict[str, dict]) -> None:
    """The page and its figures; formats that were not measured this time stay as they are there."""
    path = RESULTS / f"real_lm-{suffix()}.json"
    known = {**(json.loads(path.read_text()) if path.is_file() else {}), **found}
    write_json(path, known)
    parts = [
        f"## {form.upper()}\n\n{said_of(one['machine'])}\n`{one['command']}`\n\n{one['text']}"
        for form, one in ((form, known[form]) for form in FORMATS if form in known)
    ]
    path.with_suffix(".md").write_text("\n\n".join(["# A real language model", INTRODUCTION, *parts]) + "\n")


def said(options: argparse.Namespace) -> list[str]:
    """The command line again, but for where peers are."""
    numbers = ("seeds", "samples", "held_out", "questions", "steps")
    words = ["--formats", *options.formats, "--methods", *options.methods]
    words += [word for name in numbers for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return words + [word for peer in options.peer for word in ("--peer", f"{peer.split('=')[0]}=PYTHON")]


def drop_lists(figures: dict) -> dict:
    return {key: value for key, value in figures.items() if not isinstance(value, dict | list)}


def what_was_measured(options: argparse.Namespace) -> str:
    training = f" Training takes {options.steps} steps of 1,024 tokens." if "trained" in options.methods else ""
    windows = f"{options.held_out} of 512 and {long_windows(options)} of 2048 tokens"
    return f"""{options.samples} windows of {options.length} tokens calibrate.
{windows}, of other documents, judge, and {options.questions} questions of each task. Seeds: {options.seeds}.{training}"""


INTRODUCTION = """SmolLM2-135M-Instruct off its lattice. KL is in nats, with its 95 % interval over windows,
then as a share of the best peer's. Of tasks: right answers, and the 95 % interval of their change
from the float model's. Flips: questions that change between right and wrong. Seconds are of
rounding or training, comparable only where nothing else ran."""

HEADER = [
    "method", "KL", "of the best peer's", "perplexity, 512", "2048", "top-1", "next word", "identifier", "instruction",
    "flips", "seconds",
]  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
