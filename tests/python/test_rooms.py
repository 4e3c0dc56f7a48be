"""Includes in C++ and imports in Python go down the rooms that CONTRIBUTING.md lists, and `qat/qat.h` shows no program what
only Python reads."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import rooms

ROOT = Path(__file__).parents[2]
# The lowest first.
ROOMS = ["ops", "qat", "qat/solvers", "qat/recipe", "qat/checkpoint", "qat/nn", "qat/qat.h"]
ROOMS += ["python/bindings"]


def room_of(path):
    """The room of a file, or of one that is included: the longest name of a room that its path begins with."""
    path = path.removeprefix("qat/") if path.startswith("qat/ops/") else path
    return max((room for room in ROOMS if re.match(rf"{room}\b", path)), key=len)


def includes(file):
    return re.findall(r'#include ["<]((?:qat|python)/[^">]+)', (ROOT / file).read_text())


def test_includes_go_down():
    files = [file for folder in ("ops", "qat", "python/bindings") for file in (ROOT / folder).rglob("*.*")]
    sources = [str(file.relative_to(ROOT)) for file in files if file.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 150
    pairs = {(file, included) for file in sources for included in includes(file)}
    upwards = {(a, b) for a, b in pairs if ROOMS.index(room_of(b)) > ROOMS.index(room_of(a))}
    assert not upwards


def test_contributing_lists_the_rooms():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("The rooms of `qat/`")[1].split("\n\n")[1]
    assert re.findall(r"^\| `(qat\S*?)/?` \|", table, re.M) == ROOMS[1:-1]


def test_programs_do_not_see_what_python_alone_reads():
    seen, new = set(), {"qat/qat.h"}
    while new:
        seen |= new
        new = {included for file in new for included in includes(file) if included != "qat/built_with.h"}
        new = {name.removeprefix("qat/") if name.startswith("qat/ops/") else name for name in new} - seen
    assert "qat/recipe/recipe.h" in seen and not {"qat/recipe/run_recipe.h", "qat/recipe/yaml_section.h"} & seen
    for file in seen:
        assert not re.search("yaml-cpp|nlohmann", (ROOT / file).read_text()), file


# -- Python -----------------------------------------------------------------------------------------------------------

PACKAGE = ROOT / "python" / "torchqat"


def test_imports_go_down():
    """The contracts of pyproject.toml, held by import-linter."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout


def trees():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def imported():
    """Module and name of each `from ... import` in the package, and the file it is in."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports by a relative name"
                yield from ((path.relative_to(PACKAGE), node.module, alias.name) for alias in node.names)


def test_private_names_do_not_cross_modules():
    crossing = [one for one in imported() if re.match("torchqat", one[1]) and re.match(r"_[a-zA-Z]", one[2])]
    assert [one for one in crossing if one[2] != "_library"] == []


def test_nothing_inside_imports_the_face():
    """What `torchqat` itself offers is for others; the command line is one of them."""
    names = {path.stem if path.name != "__init__.py" else path.parent.name for path in PACKAGE.rglob("*.py")}
    from_face = [one for one in imported() if one[1] == "torchqat" and one[2] not in names]
    assert {path.parts[0] for path, _, _ in from_face} <= {"cli"}
    whole = {
        path.relative_to(PACKAGE).parts[0]
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(alias.name == "torchqat" for alias in node.names)
    }
    assert whole <= {"cli"}


def test_floors_are_counted():
    """`tools/rooms.py`: one floor above the highest room below; rooms that import each other share one."""
    arrows = {("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("a", "d")}
    assert rooms.floors(arrows, set("abcde")) == {"d": 1, "b": 2, "c": 2, "a": 3, "e": 1}


def test_contributing_lists_the_rooms_of_python():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("The rooms of `python/torchqat/`")[1].split("\n\n")[1]
    listed = re.findall(r"`(\w+)(?:/|\.py)`", "".join(re.findall(r"^\| \d+ \|([^|]*)\|", table, re.M)))
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(listed) == sorted(found - {"__init__"})
