"""Linear layers on packed weights, beside float32 ``Linear`` and ATen's own packed products, batch by batch.

    python benchmarks/packed_linear.py [--size 4096] [--rounds 25]

One weight in float32, in bfloat16, and in 4 and 8 bits; times as fast as float32 ``Linear`` in the same rounds. Before each
turn other memory passes through the caches, as the other layers of a model would. Before anything is timed, each result is
compared with the exact product in float64.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from common import Timing, paired, publish, table
from torch import Tensor
from torch.nn.functional import linear
from torchqat import PackedLinear, QuantSpec
from torchqat._library import quantize_weights
from torchqat.ops import choose_qparams

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
GROUP = 32
BASELINE = "float32 Linear"
SPECS = {4: QuantSpec(4, granularity="group", group_size=GROUP, grid="full"), 8: QuantSpec(8)}


def quantized(weight: Tensor, bits: int):
    spec = SPECS[bits]
    scale, zero = choose_qparams(weight, spec.block, bits, spec.grid, "minmax", torch.bfloat16)
    return quantize_weights("weight", spec, weight, scale, zero, torch.bfloat16)


class Candidates:
    """What multiplies the same weight, in the forms that each wants."""

    def __init__(self, size: int):
        torch.manual_seed(0)
        self.weight = torch.randn(size, size) * 0.02
        self.half = self.weight.bfloat16()
        self.weights = {bits: quantized(self.weight, bits) for bits in SPECS}
        self.packed = {bits: PackedLinear(weights) for bits, weights in self.weights.items()}
        codes, scale = self.weights[4].codes, self.weights[4].scale
        # ATen counts codes from 8, and adds a zero point after it has multiplied.
        self.aten4 = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
        self.aten4_scale = torch.stack([scale.T, torch.zeros_like(scale.T)], -1).contiguous()

    def of(self, x: Tensor) -> dict[str, Callable[[], Tensor]]:
        half = x.bfloat16()
        return {
            BASELINE: partial(linear, x, self.weight),
            "bfloat16 Linear": partial(linear, half, self.half),
            "ATen INT4, bfloat16": partial(
                torch.ops.aten._weight_int4pack_mm_for_cpu, half, self.aten4, GROUP, self.aten4_scale
            ),
            "ATen INT8, bfloat16": partial(
                torch.ops.aten._weight_int8pack_mm, half, self.weights[8].codes, self.weights[8].scale.flatten()
            ),
            "ours INT4, bfloat16": partial(self.packed[4], half),
            "ours INT4, float32": partial(self.packed[4], x),
            "ours INT8, bfloat16": partial(self.packed[8], half),
            "ours INT8, float32": partial(self.packed[8], x),
        }

    def compare(self, x: Tensor) -> dict[str, float]:
        """The largest error of each, over the sum of the magnitudes that it adds up."""
        found = {}
        for name, run in self.of(x).items():
            weight = (
                self.weight if "INT" not in name else self.weights[4 if "4," in name else 8].dequantize(torch.float32)
            )
            given = x.bfloat16() if "bfloat16" in name else x
            exact = given.double() @ weight.double().T
            size = given.double().abs() @ weight.double().abs().T
            found[name] = ((run().double() - exact).abs() / size).max().item()
            assert found[name] < (2.0**-7 if "bfloat16" in name else 2.0**-20), (name, found[name])
        return found


def limits(speed: dict[int, dict[str, float]]) -> list[str]:
    """What was promised, and whether it holds: times as fast as float32 Linear, by batch."""
    served = [batch for batch in BATCHES if batch <= 64]
    against = min(speed[b]["ours INT4, bfloat16"] / speed[b]["ATen INT4, bfloat16"] for b in served)
    single = speed[1]["ours INT4, float32"]
    slowest = min(speed[b][name] for b in BATCHES for name in speed[b] if name.startswith("ours"))

    def line(what: str, value: float, limit: float) -> str:
        return f"- {what}: {value:.1f}x, at least {limit:.0f}x: {'met' if value >= limit else 'NOT MET'}"

    return [
        line("INT4 in bfloat16 beside ATen's, batches 1 to 64, the worst", against, 1),
        line("INT4 in float32 beside float32 Linear at batch 1", single, 5),
        line("beside float32 Linear at any batch, the worst", slowest, 1),
    ]


def measure(candidates: Candidates, x: Tensor, rounds: int) -> dict[str, Timing]:
    others = torch.randn(4096, 4096)
    turns: dict[str, Callable[[], object]] = {}
    for name, run in candidates.of(x).items():
        turns |= {f"before {name}": partial(others.mul_, 1.0), name: run}
    timings = paired(turns, BASELINE, rounds, warmup=3)
    return {name: timing for name, timing in timings.items() if not name.startswith("before")}


def describe(figures: dict, speed: dict, candidates: Candidates, errors: dict[str, float]) -> str:
    names = list(speed[1])[1:]
    rows = [
        [str(b), f"{figures[b][BASELINE]['milliseconds']:.2f} ms", *(f"{speed[b][n]:.1f}x" for n in names)]
        for b in BATCHES
    ]
    smaller = [candidates.weight.nbytes / candidates.packed[bits].nbytes for bits in SPECS]
    lines = [
        table(["batch", BASELINE, *names], rows),
        "",
        f"Times as fast as float32 `Linear` in the same rounds, medians. The weight is {candidates.weight.shape[0]}², "
        f"{smaller[0]:.1f}x smaller in 4 bits and {smaller[1]:.1f}x in 8 than in float32; scales are bfloat16, one for each "
        f"{GROUP} columns in 4 bits, for each row in 8.",
        "",
        *limits(speed),
        "",
        "Compared before timing, the largest error over the sum of the magnitudes that are added up:",
        "",
        *(f"- {name}: {error:.1e}" for name, error in errors.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    candidates = Candidates(options.size)
    errors = candidates.compare(torch.randn(9, options.size))
    figures, speed = {}, {}
    for batch in BATCHES:
        timings = measure(candidates, torch.randn(batch, options.size), options.rounds)
        figures[batch] = {name: asdict(timing) for name, timing in timings.items()}
        speed[batch] = {name: 1 / timing.ratio for name, timing in timings.items()}
        print(batch, {name: f"{value:.2f}x" for name, value in speed[batch].items()}, flush=True)
    body = describe(figures, speed, candidates, errors)
    command = f"python benchmarks/packed_linear.py --size {options.size} --rounds {options.rounds}"
    publish("packed_linear", "Linear layers on packed weights", body, {"timings": figures, "errors": errors}, command)


if __name__ == "__main__":
    main()
