"""What the benchmarks share: paired timing, memory, figures that are kept, the machine in words, tables and JSON."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchqat
from torchqat import ops
from torchqat.files import write_json

RESULTS = Path(__file__).parent / "results"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MEGABYTE = 2**20


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
    if CUDA:
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


def alone(script: str, *arguments: object) -> Any:
    """What ``script`` prints last, as JSON, in a process of its own, whose large tensors are unmapped when they go."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_megabytes() -> float:
    """What this program had at most, of a GPU where there is one; getrusage would count what it was started from."""
    if CUDA:
        return torch.cuda.max_memory_allocated() / MEGABYTE
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def kept(path: Path, signature: dict, make: Callable[[], dict]) -> dict:
    """The figures in the file ``path`` if they are of ``signature``, else those that ``make`` gives, which go there."""
    if path.is_file() and (found := json.loads(path.read_text())).get("signature") == signature:
        return found["figures"]
    figures = make()
    write_json(path, {"signature": signature, "figures": figures})
    return figures


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most."""
    return f"{form} ({form} to {form})".format(statistics.median(values), min(values), max(values))


def machine() -> dict[str, str]:
    """Device and versions."""
    if CUDA:
        device = torch.cuda.get_device_name()
    else:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        device = (
            f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, {ops.cpu_capability()}"
        )
    return {"device": device, "torch": torch.__version__, "torchqat": torchqat.__version__, **peer_versions()}


def said_of(found: dict[str, str]) -> str:
    """``machine()`` as a sentence."""
    return f"{found['device']}; {', '.join(f'{key} {value}' for key, value in found.items() if key != 'device')}."


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
    if CUDA:
        return "cuda"
    return "-".join(["cpu", *filter(None, [os.environ.get("TORCHQAT_CPU_CAPABILITY")])])


def publish(name: str, title: str, body: str, figures: object, command: str) -> None:
    """Print a result and write it, as Markdown and JSON, to ``benchmarks/results/``."""
    text = f"# {title}\n\n{said_of(machine())}\n`{command}`\n\n{body}\n"
    print(text)
    path = RESULTS / f"{name}-{suffix()}"
    path.with_suffix(".md").write_text(text)
    path.with_suffix(".json").write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")


def verdict(value: float, limit: float) -> str:
    return "met" if value <= limit else f"short by {100 * (value / limit - 1):.1f} %"
