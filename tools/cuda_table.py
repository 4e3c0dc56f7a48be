"""What the hot CUDA kernels cost an element: instructions beside bytes, for docs/performance.md, without a GPU.

    python tools/cuda_table.py > table.md
    python tools/cuda_table.py --arch 80 90 --cuobjdump /usr/local/cuda/bin/cuobjdump

Compiles the CMake target qat_cuda for each architecture, with the nvcc, and reads its objects, with the cuobjdump and the
nvdisasm, of the CUDA Toolkit (``-sass`` and ``-res-usage``); ``--objects`` reads objects or cubins that are there already.
All of it is static, an estimate and no measurement:

- A loop is what lies between a label and a branch back to it. The main loop of a kernel is, of the innermost loops that
  store to global memory, the one with the widest stores and of these the one with the most; of a kernel that only reads, it
  is the same of loads. A kernel of several passes has one of each. Where a thread takes one vector of a group, the loop
  around it counts.
- Of a loop counts the shortest way round that passes its widest loads and stores and its inner loops of shuffles, these as
  often as a group of 128 needs. So what is skipped by a branch, such as a second look at what is not finite, does not count,
  nor what is called, such as the slow way of a division; an instruction whose predicate is false does.
- A round treats as many elements as its widest stores (or loads) hold; 32 threads share an instruction.
- Issue: instructions / (4 warp instructions x SMs x clock). Units that are narrower than that, for MUFU, conversions and, on
  A100 and T4, float32, can take longer.
- Memory: each byte moved once / bandwidth; scales and zero points, one a group, are left out.
- Spills are the loads and stores of local memory in the whole kernel.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hot_kernels import HALF, KERNELS, Kernel
from sass import Instruction, instructions, lies_in, loops, resources, way_round

ROOT = Path(__file__).parent.parent

SIZES = {"float": 4, HALF: 2}
NAMES = {"float": "float32", HALF: "bfloat16"}


@dataclass(frozen=True)
class Gpu:
    """SMs, boost clock in GHz and GB/s."""

    name: str
    sms: int
    clock: float
    bandwidth: float


# Bandwidths by NVIDIA's data sheets "A100 Tensor Core GPU" (SXM, 80 GB), "H100 Tensor Core GPU" (SXM), "L4 Tensor Core GPU"
# and "T4 Tensor Core GPU"; SMs by its whitepapers on the architectures Ampere, Hopper, Ada and Turing; clocks are those at
# which the SMs give the float32 rate of the data sheet (19.5, 67, 30.3 and 8.1 TFLOPS).
GPUS = {
    75: Gpu("T4", 40, 1.59, 320),
    80: Gpu("A100", 108, 1.41, 2039),
    89: Gpu("L4", 58, 2.04, 300),
    90: Gpu("H100", 132, 1.98, 3350),
}
ISSUED = 4  # warp instructions an SM issues a clock
LANES = 32


def moved_by(loop: list[Instruction], access: str) -> tuple[int, int]:
    """How wide the widest accesses are, and how many bytes they move in a round."""
    widths = Counter(width for each in loop if (width := each.bytes_of(access)))
    return (max(widths), max(widths) * widths[max(widths)]) if widths else (0, 0)


# What the passes of hot_kernels.py load and store; None: whether or not.
PASSES = {"load": (True, False), "store": (None, True), "copy": (True, True)}


def main_loops(code: list[Instruction], kind: str) -> list[list[Instruction]]:
    """The loops of a pass of this kind, the one that moves most first."""

    def fits(loop: list[Instruction]) -> bool:
        moves = (moved_by(loop, access) != (0, 0) for access in ("load", "store"))
        return all(wanted in (None, does) for wanted, does in zip(PASSES[kind], moves, strict=True))

    there = [loop for loop in loops(code) if fits(loop)]
    innermost = [loop for loop in there if not any(lies_in(other, loop) for other in there)]
    return sorted(innermost, key=lambda loop: (moved_by(loop, access_of(kind)), -len(loop)), reverse=True)


def access_of(kind: str) -> str:
    """What a pass is measured by."""
    return "load" if kind == "load" else "store"


def round_of(code: list[Instruction], kind: str, kernel: Kernel, turns: int, place: int = 0) -> tuple[Counter, int]:
    """How often each kind of instruction is met in a round, and how many bytes the round moves.

    ``place``: of the pass among those of its kind.
    """
    found = main_loops(code, kind)
    if place >= len(found):
        return Counter(), 0
    main = loop = found[place]
    everywhere = loops(code)
    if kernel.around:
        loop = min((each for each in everywhere if lies_in(main, each)), key=len, default=main)
    inner = {each.address for body in everywhere if lies_in(body, loop) and body[0] != main[0] for each in body}
    widest = {access: moved_by(main, access)[0] for access in ("load", "store")}
    within = {each.address for each in main}
    passed = [
        each
        for each in loop
        if (each.address in within and any(each.bytes_of(access) == size > 0 for access, size in widest.items()))
        or (each.address in inner and each.opcode.startswith("SHFL"))
    ]
    counts: Counter = Counter()
    for each in way_round(loop, passed, kernel.around):
        counts[each.kind] += turns if each.address in inner else 1
    return counts, moved_by(main, access_of(kind))[1]


@dataclass(frozen=True)
class Row:
    """What a kernel needs for one element."""

    label: str
    types: str
    registers: int
    spills: int
    counts: dict[str, float]
    bytes: float


def row_of(kernel: Kernel, found: re.Match, code: list[Instruction], registers: int) -> Row | None:
    """None where the kernel has no such loop: it has been unrolled, or the pattern is another's."""

    def size(one: str | float) -> float:
        return one if isinstance(one, (int, float)) else SIZES[found[one]]

    counts: Counter = Counter()
    turns = kernel.turns[found["size"]] if kernel.turns else 1
    for index, kind in enumerate(kernel.passes):
        met, moved = round_of(code, kind, kernel, turns, kernel.passes[:index].count(kind))
        if not moved:
            return None
        elements = moved / (size(kernel.reads[0]) * kernel.beside if kind == "load" else size(kernel.writes[0]))
        for kind, count in met.items():
            counts[kind] += count / elements
    spills = sum(each.opcode.partition(".")[0] in ("LDL", "STL") for each in code)
    named = found.groupdict()
    types = " to ".join(NAMES[named[one]] for one in ("input", "output") if named.get(one))
    moved = sum(map(size, (*kernel.reads, *kernel.writes)))
    return Row(kernel.label, types, registers, spills, dict(counts), moved)


def picoseconds(row: Row, gpu: Gpu) -> tuple[float, float]:
    """An element's time at the rate of issue, and at the bandwidth."""
    rate = gpu.sms * gpu.clock * ISSUED * LANES  # threads' instructions a nanosecond
    return 1000 * sum(row.counts.values()) / rate, 1000 * row.bytes / gpu.bandwidth


def table(rows: list[tuple[Row, Gpu]]) -> str:
    """A line for a kernel and its types; the kernels in the order of ``KERNELS``, the GPUs in that of ``GPUS``."""
    gpus = [gpu for gpu in GPUS.values() if any(gpu == other for _, other in rows)] or [*{gpu: 0 for _, gpu in rows}]
    labels = [kernel.label for kernel in KERNELS]
    found = {(labels.index(row.label), row.types, gpu): row for row, gpu in rows}
    lines = [
        f"| operator, quantizer | types | bytes | registers | {' | '.join(gpu.name for gpu in gpus)} |",
        "|---|---|---|---|" + "---|" * len(gpus),
    ]
    for index, types in sorted({key[:2] for key in found}):
        own = {gpu: found[index, types, gpu] for gpu in gpus if (index, types, gpu) in found}
        most = max(row.registers for row in own.values())
        spills = max(row.spills for row in own.values())
        cells = [
            labels[index],
            types,
            f"{next(iter(own.values())).bytes:g}",
            f"{most}, {spills} spills" if spills else most,
        ]
        for gpu in gpus:
            if gpu not in own:
                cells.append("")
                continue
            issue, memory = picoseconds(own[gpu], gpu)
            times = (f"**{issue:.2f}**", f"{memory:.2f}") if issue > memory else (f"{issue:.2f}", f"**{memory:.2f}**")
            cells.append(f"{sum(own[gpu].counts.values()):.1f}: {' / '.join(times)}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def rows_of(sass: str, usage: str, demangled: dict[str, str]) -> list[tuple[Kernel, Row | None]]:
    """Of every kernel that one of ``KERNELS`` describes."""
    registers = resources(usage)
    return [
        (kernel, row_of(kernel, match, code, registers.get(name, 0)))
        for name, code in instructions(sass).items()
        for kernel in KERNELS
        if (match := re.search(kernel.pattern, demangled[name]))
    ]


def output_of(*command: str | Path) -> str:
    words = [str(word) for word in command]
    # cuobjdump looks for nvdisasm there, and where it finds none it ends with 0.
    path = os.pathsep.join([str(Path(words[0]).parent), os.environ["PATH"]]) if "/" in words[0] else os.environ["PATH"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode != 0 or "cuobjdump fatal" in done.stderr:
        sys.exit(f"{' '.join(map(str, command[:2]))} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def compiled(architectures: list[int], build: Path) -> list[Path]:
    import torch

    output_of(
        "cmake", "-S", ROOT, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
        "-DQAT_BUILD_PYTHON=OFF", "-DQAT_TOGETHER=OFF",
        "-DQAT_CHECK_CUDA=ON", f"-DQAT_CUDA_ARCHITECTURES={';'.join(f'{arch}-real' for arch in architectures)}",
    )  # fmt: skip
    output_of("cmake", "--build", build, "--target", "qat_cuda", "--parallel")
    return sorted((build / "CMakeFiles" / "qat_cuda.dir" / "ops" / "cuda").glob("*.cu.o"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", type=int, choices=GPUS, default=list(GPUS), help="75, 80, 89 or 90")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda_table", help="where to compile")
    parser.add_argument("--objects", nargs="+", type=Path, help="objects or cubins to read in place of compiling")
    parser.add_argument("--cuobjdump", default="cuobjdump", help="where that is")
    options = parser.parse_args()
    if not shutil.which(options.cuobjdump):
        sys.exit(f"{options.cuobjdump} was not found: it is part of the CUDA Toolkit; --cuobjdump says where it is.")
    rows: list[tuple[Row, Gpu]] = []
    seen = set()
    for file in options.objects or compiled(options.arch, options.build):
        for arch in options.arch:
            sass, usage = (
                output_of(options.cuobjdump, how, "-arch", f"sm_{arch}", file) for how in ("-sass", "-res-usage")
            )
            if f"code for sm_{arch}\n" not in sass:  # a cubin has one, whichever is asked for
                continue
            names = list(instructions(sass))
            demangled = dict(zip(names, output_of("c++filt", *names).splitlines(), strict=True)) if names else {}
            for kernel, row in rows_of(sass, usage, demangled):
                if row:
                    seen.add(kernel.label)
                    rows.append((row, GPUS[arch]))
                else:
                    print(f"{kernel.label} for sm_{arch} has no main loop", file=sys.stderr)
    for kernel in KERNELS:
        if kernel.label not in seen:
            print(f"no kernel is called {kernel.pattern}: KERNELS no longer describes {kernel.label}", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
