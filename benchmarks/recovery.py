"""How much of the loss of plain rounding does training win back? Over seeds, against controls, for each width.

    python benchmarks/recovery.py [--bits 4 3 2] [--seeds 3] [--direct 4] [--output build/recovery]

For each of the recipes int4, int3 and int2, from searched scales in place of GPTQ, on the small Llama of small_llama.py:
plain rounding, training along a schedule of widths, training without one (the exported width from the first step), and the
float model fine-tuned with cross-entropy for the same steps. Finished runs are kept, so an interrupted benchmark goes on.
Prints a table of medians and spreads, and writes it with device and versions to benchmarks/results/.
"""

import argparse
from pathlib import Path

import torchqat
from common import kept, spread
from small_llama import SMALL_LLAMA
from torchqat.device import name_of
from torchqat.kinds.losses import cross_entropy
from torchqat.reports.report import environment
from torchqat.runs.fine_tune import fine_tune
from torchqat.runs.progress import Progress
from torchqat.runs.run import Run
from torchqat.training.loop import TrainingLoop

ROOT = Path(__file__).resolve().parents[1]
GOALS = {4: 0.60, 3: 0.80, 2: 0.85}


# Of each width: steps, learning rate, and where the widths before it end.
TRAININGS = {4: (80, 2.5e-4, "5%", "10%"), 3: (240, 6e-4, "5%", "10%"), 2: (100, 1e-3, "10%", "20%")}


def load(bits: int, with_schedule: bool = True) -> torchqat._library.Recipe:
    steps, rate, first, second = TRAININGS[bits]
    stages = [(first, "int8"), (second, "int6"), ("100%", f"int{bits}")] if with_schedule else []
    settings = {
        "initialize.method": "mse",
        "schedule": [{"until": until, "weight": weight} for until, weight in stages] or None,
        "train": {"steps": steps, "learning_rate": rate, "scale_learning_rate": 2e-3},
    }
    return torchqat.load_recipe(f"int{bits}", SMALL_LLAMA | settings)


class Bench:
    """Runs that share one float model and its data."""

    def __init__(self, folder: Path):
        self.folder, self.progress = folder, Progress()
        self.first = Run(load(4), folder / "float", self.progress)
        self.baseline = torchqat.evaluate(self.first.original, self.first.data.evaluation)

    def run_of(self, recipe, name: str, seed: int) -> Run:
        recipe.train.seed = seed
        recipe.train.checkpoint_every = 10**6  # only the end
        run = Run(recipe, self.folder / f"{name}-{seed}", self.progress, self.first.float_model)
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    def kept(self, run: Run, make) -> dict[str, float]:
        """The figures of a finished run, or those of ``make``'s model."""

        def measured() -> dict[str, float]:
            (run.folder / "checkpoints" / "train.pt").unlink(missing_ok=True)
            return vars(run.measure(make(run)))

        signature = {"recipe": run.recipe.text, "seed": run.recipe.train.seed, "model": run.model_path}
        return kept(run.folder / "figures.json", signature, measured)

    def naive(self, bits: int) -> dict[str, float]:
        run = self.run_of(load(bits), f"int{bits}-naive", 0)
        return self.kept(run, lambda run: run.prepared(torchqat._library.naive_plan(run.plan, bits)))

    def trained(self, bits: int, seed: int, with_schedule: bool) -> dict[str, float]:
        name = f"int{bits}-{'schedule' if with_schedule else 'direct'}"
        return self.kept(self.run_of(load(bits, with_schedule), name, seed), fine_tune)

    def control(self, bits: int, seed: int) -> dict[str, float]:
        def make(run: Run):
            model = run.fresh_model()

            def loss(tokens):
                return cross_entropy(model(input_ids=tokens, use_cache=False).logits, tokens)

            return TrainingLoop(model, loss, run.data.train, run.recipe.train).run()

        return self.kept(self.run_of(load(bits), f"float-control-int{bits}", seed), make)


def share(metric: str, baseline: float, naive: dict, runs: list[dict]) -> list[float]:
    return [(naive[metric] - run[metric]) / (naive[metric] - baseline) for run in runs]


def rows_of(bench: Bench, bits: int, seeds: int, direct_seeds: int) -> list[str]:
    float_perplexity, naive = bench.baseline.perplexity, bench.naive(bits)
    control = bench.control(bits, 0)
    rows = [
        f"| float | fine-tuned for the {load(bits).train.steps} steps of INT{bits}, cross-entropy | "
        f"{control['perplexity']:.3f} | {control['kl']:.5f} | | |",
        f"| INT{bits} | plain rounding | {naive['perplexity']:.3f} | {naive['kl']:.5f} | | |",
    ]
    for name, with_schedule, count in (("the recipe", True, seeds), ("without its schedule", False, direct_seeds)):
        if count == 0:
            continue
        runs = [bench.trained(bits, seed, with_schedule) for seed in range(count)]
        perplexity = spread([run["perplexity"] for run in runs], "{:.3f}")
        kl = spread([run["kl"] for run in runs], "{:.5f}")
        won = spread(share("perplexity", float_perplexity, naive, runs), "{:.0%}")
        won_kl = spread(share("kl", 0.0, naive, runs), "{:.0%}")
        goal = f" goal {GOALS[bits]:.0%}" if with_schedule else ""
        rows.append(f"| INT{bits} | {name} | {perplexity} | {kl} | {won}{goal} | {won_kl} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2], choices=(2, 3, 4))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--direct", type=int, nargs="*", default=[4], help="widths to also train without a schedule")
    parser.add_argument("--direct-seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "recovery")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    bench = Bench(options.output)
    lines = [
        "| weights | method | perplexity | KL to float | perplexity gap won back | KL won back |",
        "|---|---|---|---|---|---|",
        f"| float | baseline | {bench.baseline.perplexity:.3f} | 0 | | |",
    ]
    for bits in options.bits:
        lines += rows_of(bench, bits, options.seeds, options.direct_seeds if bits in options.direct else 0)
    steps = {bits: load(bits).train.steps for bits in options.bits}
    where = ", ".join(f"{key} {value}" for key, value in environment(name_of(bench.first.device)).items())
    parameters = sum(p.numel() for p in bench.first.original.parameters()) / 1e6
    head = f"{parameters:.1f} M parameters, {bench.baseline.tokens} held-out tokens, steps {steps}, {options.seeds} seeds: "
    text = f"{head}median (least to most).\n\n" + "\n".join(lines) + f"\n\n{where}\n"
    print(text)
    if options.write:
        options.write.write_text(f"# Recovery\n\n`python benchmarks/recovery.py`\n\n{text}")


if __name__ == "__main__":
    main()
