"""Mutation testing of the scalar arithmetic and of packing: every change of one token must make a C++ test fail.

    python tools/mutate.py [--only ops/affine.h] [--jobs 2]

A mutant is the file with one operator, comparison, literal or function replaced. It is killed when it does not compile or
a test of its suite fails. Those that no input tells from the original are listed in tools/equivalent_mutants.txt, each with
the reason. Exits with 1 if a mutant survives, or if one that is listed is killed or gone.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parent.parent
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"
# What is mutated, and the tests that must notice, which build without the rest of the library.
SUITES = {
    "ops/affine.h": ["tests/ops/test_affine.cpp"],
    "ops/qparams.h": ["tests/ops/test_qparams.cpp"],
    "ops/blocks.h": ["tests/ops/test_blocks.cpp"],
    "ops/encode.h": ["tests/ops/test_code_layout.cpp"],
    "ops/pack.cpp": ["tests/ops/test_pack.cpp", "tests/qat/other_device.cpp"],
}
# Token by token: what stands there, and what is put in its place.
RULES = [
    (r"(?<=\s)\+(?=\s)", "-"),
    (r"(?<=\s)-(?=\s)", "+"),
    (r"(?<=\s)\*(?=\s)", "/"),
    (r"(?<=\s)/(?=\s)", "*"),
    (r"(?<=\s)%(?=\s)", "*"),
    (r"(?<=\s)<(?=\s)", "<="),
    (r"(?<=\s)<(?=\s)", ">"),
    (r"(?<=\s)<=(?=\s)", "<"),
    (r"(?<=\s)>(?=\s)", ">="),
    (r"(?<=\s)>(?=\s)", "<"),
    (r"(?<=\s)>=(?=\s)", ">"),
    (r"(?<=\s)==(?=\s)", "!="),
    (r"(?<=\s)&&(?=\s)", "||"),
    (r"(?<=\s)\|\|(?=\s)", "&&"),
    (r"(?<=\s)&(?=\s)", "|"),
    (r"(?<=\s)<<(?=\s)", ">>"),
    (r"(?<=\s)>>(?=\s)", "<<"),
    (r"(?<=[(\s,?:{])-(?=[\w(])", ""),  # the sign of a number or name
    (r"!(?=[\w(])", ""),
    (r"~(?=[\w(])", ""),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"\brintf\(", "roundf("),
    (r"\bfabsf\(", "("),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"\bbitwise_and\(", "bitwise_or("),
    (r"\bbitwise_or\(", "bitwise_and("),
    (r"\bbitwise_left_shift\(", "bitwise_right_shift("),
    (r"\bbitwise_right_shift\(", "bitwise_left_shift("),
    (r"\.add\(", ".sub("),
    (r"\.sub\(", ".add("),
    (r"(?<![\w.])\d+(?:u?)(?![\w.])", "({} + 1)"),
    (r"(?<![\w.])0x[0-9A-F]+(?:u?)(?![\w.])", "({} ^ 1)"),
    (r"(?<![\w.])0\.0f", "1.0f"),
    (r"(?<![\w.])(?!0\.0f)\d+\.\d+(?:e[-+]\d+)?f", "({} * 1.0001f)"),
    (r"(?<![\w.])(?!0\.0f)\d+\.\d+(?:e[-+]\d+)?f", "-{}"),
    (r"\bFLT_MAX\b", "1e38f"),
    (r"\bNAN\b", "0.0f"),
]
# Not code, or code whose change is one of words, types or registration.
HIDDEN = "|".join(
    [r"//[^\n]*", r"\"[^\"\n]*\"", r"^\s*#[^\n]*", r"static_cast<\w+>", r"TORCH_CHECK_\w+\(", r"TORCH_LIBRARY[^\n]*"]
    + [r"int64_t\{1\}", r"enum class[^}]*}"]
)


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: Relative to the root.
        place: The line of code, and which of its equal tokens is meant.
        put: What stands there instead.
        text: All of the file then.
    """

    file: str
    place: str
    put: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place} -> {self.put or 'nothing'}"


def mutants_of(file: str) -> Iterator[Mutant]:
    text = (ROOT / file).read_text()
    code = re.sub(HIDDEN, lambda found: " " * len(found[0]), text, flags=re.MULTILINE)
    for pattern, template in RULES:
        for found in re.finditer(pattern, code):
            put = template.format(found[0]) if "{}" in template else template
            begin = text.rfind("\n", 0, found.start()) + 1
            line = text[begin : text.find("\n", begin)].strip()
            number = len(re.findall(pattern, code[begin : found.start()])) + 1
            place = f"{line} | {found[0]}" + (f" #{number}" if number > 1 else "")
            yield Mutant(file, place, put, text[: found.start()] + put + text[found.end() :])


@dataclass(frozen=True)
class Suite:
    """What is the same for every mutant of a file, made once.

    Attributes:
        sources: What is compiled anew for each: the file itself or, of a header, its tests.
        objects: The rest.
        headers: What the sources include of other libraries, precompiled.
    """

    sources: list[str]
    objects: list[str]
    headers: str


def compiled(arguments: list[str], includes: list[Path]) -> bool:
    flags = ["-std=c++20", "-O0", "-ffp-contract=off", "-w", *(f"-I{folder}" for folder in [*includes, ROOT])]
    flags += [f"-isystem{path}" for path in include_paths()]
    return not subprocess.run(["g++", *flags, *arguments], capture_output=True, check=False).returncode


def suite_of(file: str, folder: Path) -> Suite:
    """The suite of ``file``, with what it leaves in ``folder``."""
    (folder / "qat").mkdir(parents=True)
    (folder / "qat" / "ops").symlink_to(ROOT / "ops")  # as CMakeLists.txt has it
    tests = [str(ROOT / source) for source in SUITES[file]]
    is_source = file.endswith(".cpp")
    sources = [str(ROOT / file)] if is_source else tests
    included = [re.findall(r"^#include <.*", Path(source).read_text(), flags=re.MULTILINE) for source in sources]
    headers = folder / "headers.h"
    headers.write_text("\n".join(dict.fromkeys(line for lines in included for line in lines)) + "\n")
    objects = [str(folder / f"{number}.o") for number in range(len(tests))] if is_source else []
    steps = [["-x", "c++-header", str(headers), "-o", f"{headers}.gch"]]
    steps += [["-c", test, "-o", target] for test, target in zip(tests, objects, strict=False)]
    if not all(compiled(step, [folder]) for step in steps):
        sys.exit(f"{' and '.join(SUITES[file])} must build with {file} alone, but do not.")
    return Suite([] if is_source else tests, objects, str(headers))


def survives(mutant: Mutant, suite: Suite) -> bool:
    """Whether every test passes with ``mutant`` in place of its file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        changed = folder / ("qat" if mutant.file.startswith("ops/") else "") / mutant.file
        changed.parent.mkdir(parents=True)
        changed.write_text(mutant.text)
        sources = suite.sources or [str(changed)]
        libraries = [f"-L{path}" for path in library_paths()] + [f"-Wl,-rpath,{path}" for path in library_paths()]
        libraries += ["-Wl,--as-needed", "-lgtest", "-lgtest_main", "-lpthread", "-lc10", "-ltorch_cpu"]
        target = str(folder / "tests")
        arguments = ["-include", suite.headers, *sources, *suite.objects, "-o", target, *libraries]
        if not compiled(arguments, [folder, Path(suite.headers).parent]):
            return False
        try:
            # The first failure says enough; a loop over every number would write millions.
            tested = subprocess.run([target, "--gtest_break_on_failure"], capture_output=True, timeout=120, check=False)
            return tested.returncode == 0
        except subprocess.TimeoutExpired:
            return False


def survivors(file: str, jobs: int) -> tuple[int, set[str]]:
    """How many mutants ``file`` has, and those that no test kills."""
    mutants = list(mutants_of(file))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        suite = suite_of(file, Path(name))
        # Else every mutant would be killed, whatever it is.
        if not survives(Mutant(file, "as it is", "", (ROOT / file).read_text()), suite):
            sys.exit(f"{' and '.join(SUITES[file])} must pass with {file} alone, but do not.")
        lives = pool.map(lambda mutant: survives(mutant, suite), mutants)
        return len(mutants), {str(mutant) for mutant, alive in zip(mutants, lives, strict=True) if alive}


def excused() -> set[str]:
    """Mutants, as they are printed, that no input tells from the original."""
    lines = EQUIVALENT.read_text().splitlines()
    return {line.partition("  ## ")[0] for line in lines if line and not line.startswith("#")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(SUITES))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = [arguments.only] if arguments.only else list(SUITES)
    expected = {name for name in excused() if name.partition(":")[0] in files}
    number, alive = 0, set()
    for file in files:
        of_file, left = survivors(file, arguments.jobs)
        print(f"{file}: {of_file} mutants, {of_file - len(left)} killed", flush=True)
        number, alive = number + of_file, alive | left
    for name in sorted(alive - expected):
        print(f"survives: {name}")
    for name in sorted(expected - alive):
        print(f"listed in {EQUIVALENT.name}, but is killed or gone: {name}")
    print(f"{number} mutants, {number - len(alive)} killed, {len(alive & expected)} equal to the original")
    return int(alive != expected)


if __name__ == "__main__":
    sys.exit(main())
