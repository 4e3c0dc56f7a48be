"""Includes in C++ go down the rooms that CONTRIBUTING.md lists, and `qat/qat.h` shows no program what only Python reads."""

import re
from pathlib import Path

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
