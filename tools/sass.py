"""Machine code of NVIDIA GPUs, as cuobjdump prints it: instructions, loops and the shortest way round one."""

import re
from dataclasses import dataclass

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

    @property
    def target(self) -> int | None:
        """Where it branches to. BRA.DIV leaves for rare code, where the threads of a warp have parted."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found and self.opcode.startswith("BRA") and self.opcode != "BRA.DIV" else None

    @property
    def ends(self) -> bool:
        """Whether the next instruction does not follow. A call is rare code, which is taken for an end."""
        name = self.opcode.partition(".")[0]
        always = not self.predicate and re.fullmatch(r"0x[0-9a-f]+", self.operands)
        return (
            name in ("CALL", "RET", "EXIT", "BRX", "JMP")
            and not self.predicate
            or self.opcode == "BRA"
            and bool(always)
        )

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
        if branch.target is None or branch.target >= branch.address:
            continue
        body = [each for each in code if branch.target <= each.address <= branch.address]
        if not any(each.opcode == "EXIT" and not each.predicate for each in body):
            found.append(body)
    return found


def lies_in(loop: list[Instruction], other: list[Instruction]) -> bool:
    """Whether a loop is a part of another."""
    return other[0].address <= loop[0].address and loop[-1].address <= other[-1].address and len(loop) < len(other)


# Predicates by their names, as far as branches have told them.
Known = frozenset[tuple[str, bool]]


def steps_from(loop: list[Instruction], at: int, known: Known) -> list[tuple[int, Known]]:
    """Where an instruction of a loop leads to but back, and what is known of predicates there."""
    each = loop[at]
    name, value = each.predicate.lstrip("@!"), "!" not in each.predicate
    if each.target is None:
        changed = set(re.findall(r"\bU?P\d\b", each.operands))
        return [] if each.ends else [(at + 1, frozenset(one for one in known if one[0] not in changed))]
    onward = [] if each.ends or (name, value) in known else [(at + 1, known | ({(name, not value)} if name else set()))]
    there = next((i for i in range(at + 1, len(loop)) if loop[i].address == each.target), None)
    if there and (name, not value) not in known:
        onward.append((there, known | ({(name, value)} if name else set())))
    return onward


def way(loop: list[Instruction], start: tuple[int, Known], goal: int) -> list[tuple[int, Known]] | None:
    """The fewest instructions from one place of a loop to another, both with it."""
    before = {start: start}
    reached = [start]
    for at in reached:
        if at[0] == goal:
            steps = [at]
            while steps[-1] != start:
                steps.append(before[steps[-1]])
            return steps[::-1]
        for one in steps_from(loop, *at):
            if one[0] <= goal and one not in before:
                before[one] = at
                reached.append(one)
    return None


def way_round(loop: list[Instruction], passed: list[Instruction], around: bool = False) -> list[Instruction]:
    """The shortest way round a loop that passes those which lie one after the other on any way.

    The first branch of a loop around the main loop asks whether the thread has a piece at all: it has.
    """
    last = len(loop) - 1
    place = {each.address: i for i, each in enumerate(loop)}

    def completed(steps: list[tuple[int, Known]]) -> list[tuple[int, Known]]:
        for at in [*(place[each.address] for each in passed), last]:
            more = way(loop, steps[-1], at)
            if more and (at == last or way(loop, more[-1], last)):
                steps = steps + more[1:]
        return steps

    start: list[tuple[int, Known]] = [(0, frozenset())]
    first = next(i for i, each in enumerate(loop) if each.target is not None)
    if around and first != last:
        start += way(loop, start[-1], first)[1:]
        ways = [completed([*start, arm]) for arm in steps_from(loop, *start[-1])]
    else:
        ways = [completed(start)]
    return [loop[at] for at, _ in max(ways, key=len)]
