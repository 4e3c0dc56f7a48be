"""tools/cuda_table.py, on a text that was written by hand as cuobjdump writes.

Its first kernel has a loop of four elements and rare code after its end that comes back into the loop; the second finds a
span by scalars or by vectors, then rounds in vectors, all of it within a loop; the third is none of those looked for.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SASS = (ROOT / "tests" / "cuda" / "kernels.sass").read_text()
USAGE = (ROOT / "tests" / "cuda" / "kernels.usage").read_text()


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("cuda_table", ROOT / "tools" / "cuda_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_table"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tool):
    names = list(tool.instructions(SASS))
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return tool.rows_of(SASS, USAGE, dict(zip(names, done.stdout.splitlines(), strict=True)))


def test_instructions(tool):
    first, second, third = tool.instructions(SASS).values()
    assert (len(first), len(second), len(third)) == (28, 26, 3)
    assert [each.opcode for each in third] == ["LDC", "EXIT", "BRA"]
    assert first[2] == tool.Instruction(0x20, "@P0", "EXIT", "")
    assert first[4] == tool.Instruction(0x40, "", "LDG.E.128", "R8, desc[UR4][R2.64]")
    kinds = ["memory", "memory", "special", "float", "float", "control", "float", "float", "float", "float", "float"]
    assert [each.kind for each in first[4:20]] == [*kinds, "memory", "integer", "integer", "control", "control"]


def test_widths(tool):
    def width(opcode, access):
        return tool.Instruction(0, "", opcode, "").bytes_of(access)

    assert [width(f"LDG.E{how}", "load") for how in ("", ".U8", ".S16.CONSTANT", ".64", ".128")] == [4, 1, 2, 8, 16]
    assert width("STG.E.U16", "store") == 2
    assert width("STG.E", "load") == width("LDG.E", "store") == width("LDS.128", "load") == 0


def test_loops(tool):
    first, second, third = (
        [(loop[0].address, loop[-1].address) for loop in tool.loops(code)] for code in tool.instructions(SASS).values()
    )
    assert first == [(0x40, 0x120)]  # not 0xa0 to 0x170, the way back from the rare code
    assert second == [(0x20, 0x50), (0x60, 0xB0), (0xF0, 0x160), (0x10, 0x170)]
    assert third == []


def test_a_loop_of_four_elements(rows):
    (kernel, row), _ = rows
    assert (kernel.label, row.types, row.registers, row.spills) == ("fake_quantize", "float32 to bfloat16", 19, 0)
    assert row.counts == {"memory": 0.75, "float": 1.75, "integer": 0.5, "control": 0.5, "special": 0.25}
    assert row.bytes == 4 + 2


def test_two_passes_each_the_one_in_vectors(rows):
    _, (kernel, row) = rows
    assert (kernel.label, row.types, row.registers, row.spills) == (
        "fake_quantize_dynamic, rows",
        "bfloat16 to bfloat16",
        40,
        2,
    )
    assert sum(row.counts.values()) == 6 / 8 + 8 / 16
    assert row.counts["memory"] == 1 / 8 + 4 / 16
    assert row.bytes == 2 + 2


def test_what_binds(tool, rows):
    gpu = tool.Gpu("made up", 10, 1.0, 4800.0)  # 1280 instructions of threads a nanosecond
    issue, memory = tool.picoseconds(rows[0][1], gpu)
    assert issue == 1000 * 3.75 / 1280 and memory == 1000 * 6 / 4800
    lines = tool.table([(row, gpu) for _, row in rows]).splitlines()
    assert lines[2] == (
        "| fake_quantize | float32 to bfloat16 | made up "
        "| 19 | 0 | 3.8 | 0.8, 1.8, 0.5, 0.5, 0.2 | 6 | 2.93 | 1.25 | issue |"
    )
    assert lines[3].endswith("| 4 | 0.98 | 0.83 | issue |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_kernel_without_a_loop_has_no_row(tool):
    code = next(iter(tool.instructions(SASS).values()))
    straight = [each for each in code if each.opcode != "BRA"]
    kernel = tool.KERNELS[0]
    assert tool.row_of(kernel, None, straight, 0) is None
