"""tools/cuda_table.py, on what cuobjdump wrote of one kernel and on a text that was written by hand as it writes.

The first kernel is real: the loops of a fake quantization for sm_90, without the encodings. A thread goes round the outer
one for each piece of a segment and round the inner one for each four elements. The second, by hand, finds a span by scalars
or by vectors, then rounds in vectors, all of it within a loop; the third is none of those looked for.
"""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SASS = (ROOT / "tests" / "cuda" / "kernels.sass").read_text()
USAGE = (ROOT / "tests" / "cuda" / "kernels.usage").read_text()


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("cuda_table")
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def rows(tool):
    names = list(tool.instructions(SASS))
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return tool.rows_of(SASS, USAGE, dict(zip(names, done.stdout.splitlines(), strict=True)))


def test_instructions(tool):
    first, second, third = tool.instructions(SASS).values()
    assert (len(first), len(second), len(third)) == (242, 26, 3)
    assert [each.opcode for each in third] == ["LDC", "EXIT", "BRA"]
    assert tool.Instruction(0x3A0, "@P0", "BRA", "0x3f0") in first
    load = next(i for i, each in enumerate(first) if each.opcode == "LDG.E.128")
    assert first[load] == tool.Instruction(0xED0, "", "LDG.E.128", "R4, desc[UR12][R4.64]")
    kinds = ["integer", "integer", "memory", "float", "float"]
    assert [each.kind for each in first[load - 2 : load + 3]] == kinds


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
    assert first == [(0xEB0, 0x11F0), (0x360, 0x1260)]
    assert second == [(0x20, 0x50), (0x60, 0xB0), (0xF0, 0x160), (0x10, 0x170)]
    assert third == []


def test_rare_code_that_comes_back_is_no_loop(tool):
    code = [
        tool.Instruction(16 * i, *each)
        for i, each in enumerate(
            [("", "MUFU.RCP", "R0, R1"), ("", "EXIT", ""), ("", "CALL", "0x90"), ("", "BRA", "0x0")]
        )
    ]
    assert tool.loops(code) == []


def test_the_shortest_way_round(tool):
    def at(address, predicate, opcode, operands):
        return tool.Instruction(address, predicate, opcode, operands)

    loop = [
        at(0x00, "", "ISETP.GE.AND", "P0, PT, R0, R1, PT"),
        at(0x10, "@P0", "BRA", "0x40"),
        at(0x20, "", "IMAD", "R2, R2, R3, RZ"),
        at(0x30, "", "IMAD", "R2, R2, R4, RZ"),
        at(0x40, "@P0", "BRA", "0x70"),  # known from above
        at(0x50, "", "STG.E.128", "desc[UR4][R2.64], R8"),
        at(0x60, "@P1", "CALL.REL.NOINC", "0x500"),
        at(0x70, "@P2", "BRA", "0x0"),
    ]
    addresses = [each.address for each in tool.way_round(loop, [])]
    assert addresses == [0x00, 0x10, 0x40, 0x70]
    assert [each.address for each in tool.way_round(loop, [loop[5]])] == [each.address for each in loop]
    assert tool.way_round(loop, [], around=True) == loop
    loop[4] = at(0x40, "@P3", "BRA", "0x70")
    assert [each.address for each in tool.way_round(loop, [loop[5]])] == [0x00, 0x10, 0x40, 0x50, 0x60, 0x70]


def test_inner_loops_count_by_their_turns(tool):
    opcodes = ["LDG.E.128", "SHFL.BFLY", "FMNMX", "BRA", "STG.E.128", "BRA"]
    operands = [
        "R8, desc[UR4][R2.64]",
        "PT, R0, R8, R1, 0x1f",
        "R8, R0, R8, !PT",
        "0x10",
        "desc[UR4][R2.64], R8",
        "0x0",
    ]
    predicates = ["", "", "", "@P0", "", "@P1"]
    code = [tool.Instruction(16 * i, *each) for i, each in enumerate(zip(predicates, opcodes, operands, strict=True))]
    counts, moved = tool.round_of(code, "store", tool.KERNELS[0], 4)
    assert moved == 16
    assert counts == {"memory": 2 + 4, "float": 4, "control": 4 + 1}


def test_the_inner_loop_counts_of_rows_and_the_outer_one_of_groups(rows):
    (groups, of_groups), (wide, of_rows), _ = rows
    assert (groups.label, wide.label) == ("fake_quantize, fixed, groups, int", "fake_quantize, fixed, rows, int")
    assert (of_rows.types, of_rows.registers, of_rows.spills) == ("float32 to bfloat16", 30, 0)
    assert of_rows.counts == {"memory": 0.5, "float": 10.5, "integer": 2.0, "control": 0.25}
    assert sum(of_groups.counts.values()) == 113 / 4  # of the 241 of the outer loop
    assert of_groups.counts["special"] == 1 / 4  # the reciprocal of the group, without its slow way
    assert of_rows.bytes == of_groups.bytes == 4 + 2


def test_two_passes_each_the_one_in_vectors(rows):
    *_, (kernel, row) = rows
    assert (kernel.label, row.types, row.registers, row.spills) == (
        "fake_quantize, minmax, rows, int",
        "bfloat16 to bfloat16",
        40,
        2,
    )
    assert sum(row.counts.values()) == 6 / 8 + 8 / 16
    assert row.counts["memory"] == 1 / 8 + 4 / 16
    assert row.bytes == 2 + 2


def test_passes_that_only_read_are_told_from_the_one_that_writes(tool):
    """As kl_divergence: zeros for tokens that do not count, the largest, the sums, the gradient."""
    load, store = "R8, desc[UR4][R2.64]", "desc[UR4][R2.64], R8"
    parts = [
        [("STG.E.U16", store)] * 4 + [("BRA", "0x0")],
        [("LDG.E.U16", load)] * 4 + [("FMNMX", "R0, R0, R8, !PT")] * 3 + [("BRA", "0x50")],
        [("LDG.E.U16", load)] * 4 + [("FADD", "R0, R0, R8")] * 9 + [("BRA", "0xd0")],
        [("LDG.E.U16", load)] * 4 + [("FMUL", "R0, R0, R8")] * 6 + [("STG.E.U16", store)] * 2 + [("BRA", "0x1b0")],
    ]
    code = []
    for opcode, operands in (each for part in parts for each in part):
        predicate = "@P0" if opcode == "BRA" else ""
        code.append(tool.Instruction(16 * len(code), predicate, opcode, operands))
    kernel = next(each for each in tool.KERNELS if each.label.startswith("kl_divergence"))
    name = "kl_divergence_kernel<c10::BFloat16, c10::BFloat16>"
    row = tool.row_of(kernel, tool.re.search(kernel.pattern, name), code, 40)
    assert (row.types, row.bytes) == ("bfloat16", 14)
    # Two elements a round: of two tensors each pass reads four, and the last writes two.
    assert row.counts == {"memory": (4 + 4 + 6) / 2, "float": (3 + 9 + 6) / 2, "control": 3 / 2}
    assert tool.re.search(kernel.pattern, "kl_divergence_kernel<float, c10::BFloat16>") is None


def test_what_binds(tool, rows):
    slow, fast = (tool.Gpu(name, 10, 1.0, bandwidth) for name, bandwidth in (("slow", 100.0), ("fast", 4800.0)))
    issue, memory = tool.picoseconds(rows[1][1], fast)  # 1280 instructions of threads a nanosecond
    assert issue == 1000 * 13.25 / 1280 and memory == 1000 * 6 / 4800
    lines = tool.table([(row, gpu) for _, row in rows for gpu in (slow, fast)]).splitlines()
    assert lines[0].endswith("| slow | fast |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| fake_quantize, minmax, rows, int",
        "| fake_quantize, fixed, groups, int",
        "| fake_quantize, fixed, rows, int",
    ]
    assert lines[2].endswith("| 4 | 40, 2 spills | 1.2: 0.98 / **40.00** | 1.2: **0.98** / 0.83 |")
    assert lines[4].endswith("| float32 to bfloat16 | 6 | 30 | 13.2: 10.35 / **60.00** | 13.2: **10.35** / 1.25 |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_kernel_without_a_loop_has_no_row(tool):
    code = next(iter(tool.instructions(SASS).values()))
    straight = [each for each in code if each.opcode != "BRA"]
    kernel = next(each for each in tool.KERNELS if not each.turns)
    assert tool.row_of(kernel, None, straight, 0) is None
