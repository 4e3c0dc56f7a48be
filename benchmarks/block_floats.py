"""NVFP4 and MXFP4: plain rounding, post-training methods and training, beside peers that round the same model.

    python benchmarks/block_floats.py [--model DIR] [--formats nvfp4 mxfp4 nvfp4:nvfp4 mxfp4:mxfp4] [--seeds 3] [--steps 80]
        [--peer model_optimizer=PYTHON] [--peer llm_compressor_fp4=PYTHON] [--no-gptq] [--write]

A format is that of the weights and, after a colon, that of the inputs (W4A4). On the small Llama of recipes/quickstart.yaml,
trained and cached if it is not, or a folder of your own such as that of ``real_model.py``: KL to the float model, perplexity
and the share of equal first choices on held-out text. Training starts from GPTQ and learns the scales, at the rate that
recipes have by default. Rotation is of the features of one group among themselves. Each --peer names the
Python of an environment that has it; it rounds, in its own process and in its own way, the same model after the same tokens
of calibration, and is judged by the same code (``workers/judge.py``). Finished rows are kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torchqat
from common import publish
from torchqat._library import Initialize
from torchqat.files import write_json
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from workers.judge import judge

ROOT = Path(__file__).resolve().parents[1]
GOALS = {False: 0.25, True: 0.5}  # of the KL of plain rounding, that training may leave: weights alone; inputs too
METHODS = {"round to nearest": "rtn", "least squared error": "mse", "GPTQ": "gptq"}
ROTATED = {"rotated, round to nearest": "hadamard+rtn", "rotated, GPTQ": "hadamard+gptq"}
GROUPS = {"nvfp4": 16, "mxfp4": 32}
FOUR_OVER_SIX = "scale_dtype: e4m3_four_over_six"
COMMAND = "python benchmarks/block_floats.py --peer model_optimizer=PYTHON --peer llm_compressor_fp4=PYTHON"
PEERS = {"model_optimizer": "ModelOpt, as its exporter rounds", "llm_compressor_fp4": "llm-compressor, post-training"}


class Bench:
    """Runs that share one float model and its data."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.output
        self.pythons = dict(peer.split("=", 1) for peer in options.peer)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.measured: dict[str, dict] = {}
        self.first = None
        self.first = self.run_of("nvfp4", "", "", 0)
        data = self.first.data
        self.rows = [row.tolist() for batch in data.evaluation for row in batch]
        self.calibration = [row.tolist() for batch in data.calibration for row in batch]
        self.baseline = judge(self.first.original, self.first.original, self.rows)

    def run_of(self, format: str, weight: str, input: str, seed: int) -> Run:
        """A run of ``format`` with further settings of its weights and inputs."""
        kind, _, inputs = format.partition(":")
        given = f"\n    input: {{dtype: {inputs}{', ' + input if input else ''}}}" if inputs else ""
        recipe = torchqat.parse_recipe(
            f"""version: 1
data: {{train: "{self.options.data}", calibration: {{samples: 64, sequence_length: {self.options.length}}},
       evaluation: {{samples: 64, sequence_length: {self.options.length}}}}}
layers:
  - match: blocks
    weight: {{dtype: {kind}{", " + weight if weight else ""}}}{given}
initialize: {{method: gptq}}
train: {{steps: {self.options.steps}, sequence_length: {self.options.length}, checkpoint_every: 1000000}}
""",
            "benchmarks/block_floats.py",
        )
        recipe.model.path = self.options.model
        if not self.options.model:
            recipe.model.scratch = torchqat.load_recipe(str(ROOT / "recipes" / "quickstart.yaml")).model.scratch
        recipe.train.seed = seed
        shared = self.first.float_model if self.first else None
        folder = self.folder / f"{format.replace(':', '-')}-{weight.replace(' ', '')}-{seed}"
        # The batches of training are drawn by the seed; what is measured is that of the first run.
        return Run(recipe, folder, Progress(quiet=True), shared, self.first if seed == 0 else None)

    def kept(self, name: str, make) -> dict:
        """What was measured of what ``make`` gives, with its seconds, once."""
        path = self.folder / f"{name.replace(':', '-').replace(' ', '_')}.json"
        signature = {"model": self.first.model_path, "steps": self.options.steps}
        if path.is_file() and (found := json.loads(path.read_text()))["signature"] == signature:
            self.measured[name] = found["figures"]
            return found["figures"]
        begun = time.monotonic()
        figures = make()
        if figures is None:
            return None
        figures.setdefault("seconds", time.monotonic() - begun)
        write_json(path, {"signature": signature, "figures": figures})
        print(name, figures, flush=True)
        self.measured[name] = figures
        return figures

    def judged(self, model) -> dict:
        return judge(model.eval(), self.first.original, self.rows)

    def method(self, format: str, method: str, weight: str = "") -> dict:
        run, initialize = self.run_of(format, weight, "", 0), Initialize(method)
        if method.startswith("hadamard"):
            initialize.rotation_size = GROUPS[format.partition(":")[0]]
        return self.kept(f"{format} {method} {weight}", lambda: self.judged(run.prepared(run.plan, initialize)))

    def trained(self, format: str, seed: int) -> dict:
        run = self.run_of(format, "scale: learned", "", seed)
        return self.kept(f"{format} trained {seed}", lambda: self.judged(fine_tune(run)))

    def peer(self, format: str, name: str) -> dict | None:
        """What a peer's own process finds of its own fake quantization; ``None`` where it cannot."""
        return self.kept(f"{format} {name}", lambda: self._asked(format, name)) if name in self.pythons else None

    def _asked(self, format: str, name: str) -> dict | None:
        tokens = self.folder / "tokens.json"
        write_json(tokens, {"calibration": self.calibration, "evaluation": self.rows})
        command = [self.pythons[name], Path(__file__).parent / "workers" / f"{name}.py"]
        command += [Path(self.first.model_path).resolve(), tokens.resolve(), format]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            print(f"{name} {format} failed: {done.stderr.strip().splitlines()[-1]}")
            return None
        return json.loads(done.stdout.strip().splitlines()[-1])


def row(name: str, figures: list[dict], plain: float, goal: float | None = None) -> str:
    kls = [f["kl"] for f in figures]
    kl = f"{statistics.median(kls):.5f}"
    if len(kls) > 1:
        kl += f" ({min(kls):.5f} to {max(kls):.5f})"
    share = f"{statistics.median(kls) / plain:.2f}" + (f", goal {goal}" if goal else "")
    perplexity, top1 = (statistics.median(f[key] for f in figures) for key in ("perplexity", "top1"))
    seconds = statistics.median(f["seconds"] for f in figures)
    return f"| {name} | {kl} | {share} | {perplexity:.3f} | {top1:.1%} | {seconds:.0f} |"


def table(bench: Bench, format: str) -> list[str]:
    kind, _, inputs = format.partition(":")
    plain = bench.method(format, "rtn")["kl"]
    lines = [
        f"\n## {kind.upper()} weights, inputs in {inputs.upper() or 'full precision'}\n",
        "| method | KL | of plain rounding's | perplexity | first choice equal | seconds |",
        "|---|---|---|---|---|---|",
    ]
    skipped = ("gptq", "hadamard+gptq") if bench.options.no_gptq else ()
    for name, method in (METHODS | ROTATED).items():
        if method not in skipped:
            lines.append(row(name, [bench.method(format, method)], plain))
    if kind == "nvfp4":
        for method in ("rtn", "gptq")[: 1 if skipped else 2]:
            title = f"four over six, {'round to nearest' if method == 'rtn' else 'GPTQ'}"
            lines.append(row(title, [bench.method(format, method, FOUR_OVER_SIX)], plain))
    for name, title in PEERS.items():
        if figures := bench.peer(format, name):
            lines.append(row(title, [figures], plain))
    if bench.options.seeds:
        runs = [bench.trained(format, seed) for seed in range(bench.options.seeds)]
        lines.append(row(f"trained from GPTQ, {bench.options.steps} steps", runs, plain, GOALS[bool(inputs)]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="python-stdlib")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--formats", nargs="+", default=["nvfp4", "mxfp4", "nvfp4:nvfp4", "mxfp4:mxfp4"])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(PEERS))
    parser.add_argument("--no-gptq", action="store_true", help="leave out what takes long on a larger model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "block_floats")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/block_floats-cpu.md")
    options = parser.parse_args()
    bench = Bench(options)
    lines = [line for format in options.formats for line in table(bench, format)]
    parameters = sum(p.numel() for p in bench.first.original.parameters()) / 1e6
    head = (
        f"A model of {parameters:.1f} M parameters, float perplexity {bench.baseline['perplexity']:.3f} over "
        f"{sum(map(len, bench.rows))} held-out tokens; {len(bench.calibration)} x {options.length} calibration tokens; "
        f"{options.seeds} seeds of training, medians (least to most). One thread, beside other work: seconds are rough."
    )
    body = f"{head}\n" + "\n".join(lines)
    print(body)
    if options.write:
        publish("block_floats", "NVFP4 and MXFP4", body, bench.measured, COMMAND)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
