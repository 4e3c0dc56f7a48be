"""Quality at equal format: plain rounding, post-training methods, and training that starts from them, beside peers.

    python benchmarks/ptq.py [--model DIR] [--formats 4:128 4:32 3:128 2:32] [--seeds 3]
        [--peer llm_compressor=PYTHON] [--peer gptqmodel=PYTHON] [--peer auto_round=PYTHON] [--write FILE]

On the small Llama of small_llama.py (trained and cached if it is not) or a folder of your own: KL to the float model
on held-out text for each method, with the seconds that calibration took. Training starts from the default, with the
scales that GPTQ chose. Each --peer names the Python of an environment that has it; it rounds the same model on the same
tokens to the same format (``workers/``), and what it gives is measured here as our own is. Finished rows are kept, so an
interrupted benchmark goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torchqat
from common import kept
from small_llama import SMALL_LLAMA
from torchqat._library import Initialize
from torchqat.device import name_of
from torchqat.files import write_json
from torchqat.reports.report import environment
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from worker import rounded_by

ROOT = Path(__file__).resolve().parents[1]
STEPS = 150  # of the training that follows GPTQ, at the rate that recipes train at
GOALS = {4: 0.8, 3: 0.7, 2: 0.6}  # of plain GPTQ's KL
LAYER = {"objective": "layer", "correction": 0.0}
METHODS = (
    ("round to nearest", "rtn", {}),
    ("least squared error", "mse", {}),
    ("AWQ", "awq", {}),
    ("GPTQ, plain order, scales by range", "gptq", {"order": "plain", "scale_search": "minmax", **LAYER}),
    ("GPTQ", "gptq", LAYER),
    ("GPTQ, columns in order of their Hessian", "gptq", {"order": "column", **LAYER}),
    ("AWQ, then GPTQ", "awq+gptq", LAYER),
    ("Hadamard, then GPTQ", "hadamard+gptq", LAYER),
    ("GPTQ, half the drift made good", "gptq", {**LAYER, "correction": 0.5}),
    ("the same, then each block trained, 200 steps", "gptq", {**LAYER, "correction": 0.5, "block_steps": 200}),
    ("GPTQ, all of it", "gptq", {**LAYER, "correction": 1.0}),
    ("GPTQ for the model's output, half the drift made good (default)", "gptq", {}),
)


# What each peer can do on a CPU, and how its row is called.
PEERS = {
    "llm_compressor": {"gptq": "llm-compressor, GPTQ"},
    "gptqmodel": {"gptq": "gptqmodel, GPTQ", "awq": "gptqmodel, AWQ"},
    "auto_round": {"signround": "auto-round, 200 iterations"},
}
TRAINED_FORMATS = ((4, 128), (3, 128), (2, 32))


class Bench:
    def __init__(self, model: str, folder: Path, pythons: dict[str, str]):
        self.folder, self.pythons = folder, pythons
        folder.mkdir(parents=True, exist_ok=True)
        self.first = self.run_of(4, 128, model, 0)
        self.model = self.first.model_path
        self.baseline = torchqat.evaluate(self.first.original, self.first.data.evaluation)

    def run_of(self, bits: int, group: int, model: str, seed: int) -> Run:
        recipe = torchqat.load_recipe("int2", SMALL_LLAMA)
        text = f"""version: 1
data: {{train: python-stdlib, calibration: {{samples: 64, sequence_length: 256}}}}
layers:
  - match: "model.layers.*"
    weight: {{dtype: int{bits}, group_size: {group}, grid: full, scale: mse}}
initialize: {{method: gptq}}
train: {{steps: {STEPS}, validate_every: 30, checkpoint_every: 1000000}}
"""
        ours = torchqat.parse_recipe(text, "benchmarks/ptq.py")
        ours.model.path, ours.model.scratch = model, None if model else recipe.model.scratch
        ours.train.seed = seed if model else 0
        shared = self.first.float_model if hasattr(self, "first") else None
        return Run(ours, self.folder / f"int{bits}-g{group}-{seed}", Progress(quiet=True), shared)

    def kept(self, name: str, make) -> dict:
        def measured() -> dict:
            begun = time.monotonic()
            model = make()
            seconds = time.monotonic() - begun
            return {**vars(self.first.measure(model)), "seconds": seconds}

        return kept(self.folder / f"{name}.json", {"model": self.model, "training": STEPS}, measured)

    def method(self, bits: int, group: int, method: str, settings: dict) -> dict:
        run = self.run_of(bits, group, self.model, 0)
        asked = Initialize(method)
        for name, value in settings.items():
            if name == "block_steps":
                asked.block_training.steps = value
            else:
                setattr(asked, name, value)
        label = "-".join([f"int{bits}-g{group}", method, *(f"{k}-{v}" for k, v in settings.items())])
        return self.kept(label, lambda: run.prepared(run.plan, asked))

    def trained(self, bits: int, group: int, seed: int) -> dict:
        run = self.run_of(bits, group, self.model, seed)
        return self.kept(f"int{bits}-g{group}-trained-{seed}", lambda: fine_tune(run))

    def peer(self, name: str, method: str, bits: int, group: int) -> dict | None:
        """What a peer gives, in its own environment; ``None`` where it cannot."""
        path = self.folder / f"int{bits}-g{group}-{name}-{method}.json"
        if path.is_file():
            return json.loads(path.read_text())
        if name not in self.pythons or (method == "awq" and bits != 4):
            return None
        python, calibration = self.pythons[name], self.first.data.calibration
        found = rounded_by(python, name, self.model, calibration, bits, group, method, self.folder)
        if found is None:
            return None
        model = self.first.fresh_model().eval()
        model.load_state_dict(found[0], strict=False)  # a tied head is not repeated
        figures = {**vars(self.first.measure(model)), "seconds": found[1]["seconds"]}
        write_json(path, figures)
        return figures


def row(name: str, figures: list[dict], goal: float | None = None, plain: float | None = None) -> str:
    kls = [f["kl"] for f in figures]
    kl = f"{statistics.median(kls):.5f}"
    if len(kls) > 1:
        kl += f" ({min(kls):.5f} to {max(kls):.5f})"
    share = f"{statistics.median(kls) / plain:.2f}" if plain else ""
    if goal:
        share += f", goal {goal}"
    perplexity = statistics.median(f["perplexity"] for f in figures)
    seconds = statistics.median(f["seconds"] for f in figures)
    return f"| {name} | {perplexity:.3f} | {kl} | {share} | {seconds:.1f} |"


def table(bench: Bench, bits: int, group: int, seeds: int) -> list[str]:
    plain = bench.method(bits, group, "gptq", LAYER)["kl"]
    lines = [
        f"\n## INT{bits}, groups of {group}\n",
        "| method | perplexity | KL | of GPTQ's | seconds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        row(name, [bench.method(bits, group, method, settings)], plain=plain) for name, method, settings in METHODS
    ]
    for name, methods in PEERS.items():
        for method, label in methods.items():
            figures = bench.peer(name, method, bits, group)
            if figures is not None:
                lines.append(row(label, [figures], plain=plain))
    if seeds and (bits, group) in TRAINED_FORMATS:
        runs = [bench.trained(bits, group, seed) for seed in range(seeds)]
        lines.append(row(f"trained from the default, {STEPS} steps", runs, GOALS[bits], plain))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--formats", nargs="+", default=["4:128", "4:32", "3:128", "2:32"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "ptq")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    bench = Bench(options.model, options.output, dict(peer.split("=", 1) for peer in options.peer))
    lines = []
    for text in options.formats:
        bits, group = map(int, text.split(":"))
        lines += table(bench, bits, group, options.seeds)
    where = ", ".join(f"{key} {value}" for key, value in environment(name_of(bench.first.device)).items())
    parameters = sum(p.numel() for p in bench.first.original.parameters()) / 1e6
    head = (
        f"A Llama of {parameters:.1f} M parameters, float perplexity {bench.baseline.perplexity:.3f} over "
        f"{bench.baseline.tokens} held-out tokens; 64 x 256 calibration tokens; {options.seeds} seeds of training."
    )
    text = f"{head}\n" + "\n".join(lines) + f"\n\n{where}\n"
    print(text)
    if options.write:
        options.write.write_text(
            f"# Post-training quantization, and training from it\n\n`python benchmarks/ptq.py`\n\n{text}"
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
