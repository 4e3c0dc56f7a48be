"""What the benchmarks share: paired timing, the machine in words, tables and JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchqat
from torchqat import ops

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """One candidate beside the baseline that ran in the same rounds.

    Attributes:
        milliseconds: Median over rounds.
        ratio: Median over rounds of its time divided by the baseline's in that round.
        low: Lower quartile of that ratio.
        high: Upper quartile of that ratio.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f}–{self.high:.2f})"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], object]) -> float:
    """Seconds that it takes, or those that it returns, as what runs in another process does."""
    synchronize()
    start = time.perf_counter()
    own = run()
    synchronize()
    return own if isinstance(own, float) else time.perf_counter() - start


def paired(
    candidates: dict[str, Callable[[], object]], baseline: str, rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Time every candidate once a round, in turn, so that what else the machine does meets all of them alike."""
    for run in candidates.values():
        for _ in range(warmup):
            run()
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            seconds[name].append(timed(run))
    timings = {}
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[baseline], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        timings[name] = Timing(1e3 * statistics.median(own), statistics.median(ratios), low, high)
    return timings


def machine() -> dict[str, str]:
    """Device and versions."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        device = (
            f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, {ops.cpu_capability()}"
        )
    return {"device": device, "torch": torch.__version__, "torchqat": torchqat.__version__, **peer_versions()}


def peer_versions() -> dict[str, str]:
    import importlib.metadata

    versions = {}
    for name in ("torchao", "brevitas"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def suffix() -> str:
    """Of a result's file: the device, and its instructions where TORCHQAT_CPU_CAPABILITY asks for less than there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "-".join(["cpu", *filter(None, [os.environ.get("TORCHQAT_CPU_CAPABILITY")])])


def publish(name: str, title: str, body: str, figures: object, command: str) -> None:
    """Print a result and write it, as Markdown and JSON, to ``benchmarks/results/``."""
    facts = ", ".join(f"{key} {value}" for key, value in machine().items() if key != "device")
    text = f"# {title}\n\n{machine()['device']}; {facts}.\n`{command}`\n\n{body}\n"
    print(text)
    path = RESULTS / f"{name}-{suffix()}"
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")


def verdict(value: float, limit: float) -> str:
    return "met" if value <= limit else f"short by {100 * (value / limit - 1):.1f} %"
