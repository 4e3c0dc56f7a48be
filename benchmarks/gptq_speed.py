"""GPTQ of one layer from a ready Hessian, beside llm-compressor and what linear algebra alone costs.

    python benchmarks/gptq_speed.py --llm-compressor PYTHON [--rounds 5] [--sizes 512 1024 2048 4096]

INT4 in groups of 128, a weight of 4096 rows, in_features as given. The two take turns in one run, and the peer's result must
not be better by more than a tenth in the error of the output, or the comparison would be of different work. The limit is the
half of an n x n x rows product and one Cholesky factor that GPTQ cannot do without. Writes the figure as well.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, publish, table
from torchqat import QuantSpec
from torchqat._library import gptq, output_error

ROWS, GROUP = 4096, 128


class Peer:
    """llm-compressor in an environment of its own."""

    def __init__(self, python: str):
        script = Path(__file__).parent / "workers" / "gptq_layer.py"
        command = [python, str(script)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, path: Path) -> dict[str, float]:
        print(path, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):  # the rest is its log
                return json.loads(line)
        raise RuntimeError("llm-compressor ended early")


def problem(features: int) -> dict:
    generator = torch.Generator().manual_seed(features)
    x = torch.randn(2 * features, features, generator=generator)
    x = x @ torch.randn(features, features, generator=generator) / features**0.5
    weight = torch.randn(ROWS, features, generator=generator)
    return {"weight": weight, "hessian": x.T @ x / len(x), "group": GROUP}


def timed(run) -> tuple[object, float]:
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


def ours(case: dict, order: str, search: str) -> dict[str, float]:
    spec = QuantSpec(4, granularity="group", group_size=GROUP, grid="full")
    run = lambda: gptq(case["weight"], case["hessian"], spec, 4, order=order, scale_search=search)  # noqa: E731
    found, seconds = timed(run)
    return {"seconds": seconds, "error": output_error(case["weight"] - found.weight, case["hessian"])}


def limit(case: dict) -> float:
    hessian = case["hessian"] + 0.01 * case["hessian"].diagonal().mean() * torch.eye(len(case["hessian"]))
    _, product = timed(lambda: case["weight"] @ case["hessian"])
    _, factor = timed(lambda: torch.linalg.cholesky(hessian))
    return 0.5 * product + factor


def measure(features: int, peer: Peer, rounds: int, folder: Path) -> dict:
    case = problem(features)
    path = folder / f"{features}.pt"
    torch.save(case, path)
    runs = {
        "same": lambda: ours(case, "plain", "minmax"),  # what the peer does: columns as they stand, scales by range
        "default": lambda: ours(case, "group", "mse"),
        "peer": lambda: peer(path),
    }
    seconds = {name: [] for name in (*runs, "limit")}
    for number in range(rounds + 1):
        found = {name: run() for name, run in runs.items()}
        if number:  # the first warms up
            for name, figures in found.items():
                seconds[name].append(figures["seconds"])
            seconds["limit"].append(limit(case))
    assert found["same"]["error"] <= 1.1 * found["peer"]["error"], found
    ratios = sorted(p / o for p, o in zip(seconds["peer"], seconds["same"], strict=True))
    return {
        "in_features": features,
        **{name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
        "least": ratios[0],
        "most": ratios[-1],
        "ratio_default": statistics.median(p / o for p, o in zip(seconds["peer"], seconds["default"], strict=True)),
        "error": found["same"]["error"] / found["peer"]["error"],
        "error_default": found["default"]["error"] / found["peer"]["error"],
    }


def draw(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, label in (
        ("peer", "llm-compressor"),
        ("default", "torchqat"),
        ("same", "torchqat, the same work"),
        ("limit", "limit"),
    ):
        axes.loglog([row["in_features"] for row in rows], [row[name] for row in rows], "o-", label=label, base=2)
    axes.set_xlabel("in_features")
    axes.set_ylabel(f"seconds for {ROWS} rows")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "gptq_speed-cpu.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm-compressor", required=True, help="Python of an environment with llm-compressor")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    options = parser.parse_args()
    peer = Peer(options.llm_compressor)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(size, peer, options.rounds, Path(folder)) for size in options.sizes]
    header = [
        "in_features",
        "llm-compressor",
        "the same work",
        "faster",
        "default",
        "faster",
        "limit",
        "error",
        "error, default",
    ]
    cells = [
        [
            str(row["in_features"]),
            f"{row['peer']:.3f} s",
            f"{row['same']:.3f} s",
            f"{row['ratio']:.1f}x ({row['least']:.1f} to {row['most']:.1f})",
            f"{row['default']:.3f} s",
            f"{row['ratio_default']:.1f}x",
            f"{row['limit']:.3f} s",
            f"{row['error']:.2f}",
            f"{row['error_default']:.2f}",
        ]
        for row in rows
    ]
    note = (
        "The same work: columns in plain order, scales by range; the default orders groups and searches scales. Errors are "
        "of the layer's output, relative to the peer's. The limit: half a product of the weight and the Hessian, and a "
        "Cholesky factor.\n\n![seconds](gptq_speed-cpu.png)"
    )
    publish(
        "gptq_speed", "GPTQ of one layer", f"{table(header, cells)}\n\n{note}", rows, "python benchmarks/gptq_speed.py"
    )
    draw(rows)


if __name__ == "__main__":
    main()
