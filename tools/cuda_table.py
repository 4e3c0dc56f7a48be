"""What the hot CUDA kernels cost an element: instructions beside bytes, for docs/performance.md, without a GPU.

    python tools/cuda_table.py > table.md
    python tools/cuda_table.py --arch 80 90 --cuobjdump /usr/local/cuda/bin/cuobjdump

Compiles the CMake target qat_cuda for each architecture, with the nvcc, and reads its objects, with the cuobjdump, of the
CUDA Toolkit (``-sass`` and ``-res-usage``). All of it is static, an estimate and no measurement:

- A loop is what lies between a label and a branch back to it. The main loop of a kernel is, of the innermost loops that
  store to global memory, the one with the widest stores and of these the one with the most; of a kernel that only reads, it
  is the same of loads. A kernel of two passes has one of each.
- Every instruction of the main loop counts once, label to branch, whether or not a predicate or a branch in it skips it.
  What it calls, such as the slow way of a division, lies outside and does not count, nor does what comes before and after.
- A round treats as many elements as its widest stores (or loads) hold; 32 threads share an instruction.
- Issue: instructions / (4 warp instructions x SMs x clock). Units that are narrower than that, for MUFU, conversions and, on
  A100 and T4, float32, can take longer.
- Memory: each byte moved once / bandwidth; scales and zero points, one a group, are left out.
- Spills are the loads and stores of local memory in the whole kernel.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TYPE = r"(?:float|c10::BFloat16|c10::Half)"
INPUT, OUTPUT = rf"(?P<input>{TYPE})", rf"(?P<output>{TYPE})"


@dataclass(frozen=True)
class Kernel:
    """What is looked for among the demangled names. Reads and writes are groups of the pattern, or bytes an element."""

    label: str
    pattern: str
    reads: tuple[str | float, ...]
    writes: tuple[str | float, ...] = ()
    passes: tuple[str, ...] = ("store",)


KERNELS = [
    Kernel(
        "fake_quantize", rf"visit_vectors<.*launch_round<{INPUT}, {OUTPUT}, qat::StoredParams>", ("input",), ("output",)
    ),
    Kernel("fake_quantize, backward", rf"visit_vectors<.*launch_backward<{INPUT}>", ("input", "input"), ("input",)),
    Kernel(
        "fake_quantize_learned",
        rf"visit_vectors<.*launch_round<{INPUT}, {OUTPUT}, qat::LearnedParams>",
        ("input",),
        ("output",),
    ),
    Kernel(
        "fake_quantize_learned, backward, groups",
        rf"visit_warps_of_vectors<.*launch_groups<{INPUT}>",
        ("input", "input"),
        ("input",),
    ),
    Kernel(
        "fake_quantize_dynamic, groups",
        rf"visit_warps_of_vectors<.*launch_groups<{INPUT}, {OUTPUT}>",
        ("input",),
        ("output",),
    ),
    Kernel(
        "fake_quantize_dynamic, rows",
        rf"visit_segments<.*launch_rows<{INPUT}, {OUTPUT}>",
        ("input",),
        ("output",),
        ("load", "store"),
    ),
    Kernel("choose_qparams, minmax", rf"choose_qparams_kernel<{INPUT}>", ("input",), (), ("load",)),
    Kernel("quantize", rf"visit_segments<.*launch_quantize<{INPUT}>", ("input",), (1,)),
    Kernel("dequantize", rf"visit_segments<.*launch_dequantize<{OUTPUT}>", (1,), ("output",)),
]

SIZES = {"float": 4, "c10::BFloat16": 2, "c10::Half": 2}
NAMES = {"float": "float32", "c10::BFloat16": "bfloat16", "c10::Half": "float16"}


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

# By the first part of an opcode. What is not named counts as integer: addresses, moves, constants, predicates.
CLASSES = {
    "memory": "LD LDG LDS LDL LDSM ST STG STS STL ATOM ATOMG ATOMS RED SHFL CCTL MEMBAR LDGSTS",
    "float": "FADD FMUL FFMA FMNMX FMNMX3 FSEL FSET FSETP FCHK FRND HADD2 HMUL2 HFMA2 HMNMX2 HSET2 HSETP2 DADD DMUL DFMA "
    "DMNMX DSETP F2F F2FP F2I F2IP I2F I2FP FADD2 FMUL2 FFMA2",
    "special": "MUFU",
    "control": "BRA BRX JMP BSSY BSYNC BREAK BMOV CALL RET EXIT WARPSYNC BAR NOP VOTE VOTEU YIELD NANOSLEEP DEPBAR ERRBAR "
    "UCGABAR_ARV UCGABAR_WAIT ACQBULK",
}
CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes.split()}


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        return CLASS_OF.get(self.opcode.partition(".")[0], "integer")

    def bytes_of(self, access: str) -> int:
        """How wide a load from or a store to global memory it is; 0 for anything else."""
        name, *how = self.opcode.split(".")
        if name != {"load": "LDG", "store": "STG"}[access]:
            return 0
        return next((size for part, size in WIDTHS.items() if part in how), 4)


WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


def instructions(sass: str) -> dict[str, list[Instruction]]:
    """Of each kernel, by its mangled name, from what ``cuobjdump -sass`` prints."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in sass.splitlines():
        if name := re.search(r"Function : (\S+)", line):
            current = found.setdefault(name[1], [])
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?\w+)?\s*([A-Z][\w.]*)\s*([^;]*);", line):
            current.append(Instruction(int(code[1], 16), code[2] or "", code[3], code[4].strip()))
    return found


def resources(usage: str) -> dict[str, int]:
    """Registers of each kernel, from what ``cuobjdump -res-usage`` prints."""
    return {name: int(count) for name, count in re.findall(r"Function (\S+):\s+REG:(\d+)", usage)}


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """What lies between a label and a branch back to it. Rare code, which stands after the end and comes back, is none."""
    found = []
    for branch in code:
        target = re.search(r"0x([0-9a-f]+)$", branch.operands)
        if not branch.opcode.startswith("BRA") or not target or int(target[1], 16) >= branch.address:
            continue
        body = [each for each in code if int(target[1], 16) <= each.address <= branch.address]
        if not any(each.opcode == "EXIT" and not each.predicate for each in body):
            found.append(body)
    return found


def moved_by(loop: list[Instruction], access: str) -> tuple[int, int]:
    """How wide the widest accesses are, and how many bytes they move in a round."""
    widths = Counter(width for each in loop if (width := each.bytes_of(access)))
    return (max(widths), max(widths) * widths[max(widths)]) if widths else (0, 0)


def main_loop(code: list[Instruction], access: str) -> list[Instruction]:
    there = [loop for loop in loops(code) if moved_by(loop, access) != (0, 0)]
    if access == "load":  # the pass that only reads, where there is another
        there = [loop for loop in there if moved_by(loop, "store") == (0, 0)]
    innermost = [loop for loop in there if not any(set(other) < set(loop) for other in there)]
    return max(innermost, key=lambda loop: (moved_by(loop, access), -len(loop)), default=[])


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
    for access in kernel.passes:
        loop = main_loop(code, access)
        if not loop:
            return None
        elements = moved_by(loop, access)[1] / size(kernel.writes[0] if access == "store" else kernel.reads[0])
        for instruction in loop:
            counts[instruction.kind] += 1 / elements
    spills = sum(each.opcode.partition(".")[0] in ("LDL", "STL") for each in code)
    types = " to ".join(NAMES[one] for one in found.groups())
    moved = sum(map(size, (*kernel.reads, *kernel.writes)))
    return Row(kernel.label, types, registers, spills, dict(counts), moved)


def picoseconds(row: Row, gpu: Gpu) -> tuple[float, float]:
    """An element's time at the rate of issue, and at the bandwidth."""
    rate = gpu.sms * gpu.clock * ISSUED * LANES  # threads' instructions a nanosecond
    return 1000 * sum(row.counts.values()) / rate, 1000 * row.bytes / gpu.bandwidth


def table(rows: list[tuple[Row, Gpu]]) -> str:
    kinds = ["memory", "float", "integer", "control", "special"]
    lines = [
        "| kernel | types | GPU | registers | spills | instructions an element | memory, float, integer, control, MUFU "
        "| bytes an element | issue, ps | memory, ps | binds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, gpu in sorted(rows, key=lambda pair: (pair[0].label, pair[0].types)):
        issue, memory = picoseconds(row, gpu)
        cells = [
            row.label,
            row.types,
            gpu.name,
            row.registers,
            row.spills,
            f"{sum(row.counts.values()):.1f}",
            ", ".join(f"{row.counts.get(kind, 0):.1f}" for kind in kinds),
            f"{row.bytes:g}",
            f"{issue:.2f}",
            f"{memory:.2f}",
            "issue" if issue > memory else "memory",
        ]
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
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command[:2]))} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def compiled(architectures: list[int], build: Path) -> list[Path]:
    import torch

    output_of(
        "cmake", "-S", ROOT, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DQAT_BUILD_PYTHON=OFF",
        "-DQAT_CHECK_CUDA=ON", f"-DQAT_CUDA_ARCHITECTURES={';'.join(f'{arch}-real' for arch in architectures)}",
    )  # fmt: skip
    output_of("cmake", "--build", build, "--target", "qat_cuda", "--parallel")
    return sorted((build / "CMakeFiles" / "qat_cuda.dir" / "ops" / "cuda").glob("*.cu.o"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", type=int, choices=GPUS, default=list(GPUS), help="75, 80, 89 or 90")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda_table", help="where to compile")
    parser.add_argument("--cuobjdump", default="cuobjdump", help="where that is")
    options = parser.parse_args()
    if not shutil.which(options.cuobjdump):
        sys.exit(f"{options.cuobjdump} was not found: it is part of the CUDA Toolkit; --cuobjdump says where it is.")
    rows: list[tuple[Row, Gpu]] = []
    seen = set()
    for file in compiled(options.arch, options.build):
        for arch in options.arch:
            sass, usage = (
                output_of(options.cuobjdump, how, "-arch", f"sm_{arch}", file) for how in ("-sass", "-res-usage")
            )
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
