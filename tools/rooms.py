"""How the Python package is divided: rooms, floors and imports between them.

    python tools/rooms.py [--source python] [--list]

A room is a folder or a file right under ``torchqat``; its floor is one above the highest room that it imports from.
``--source`` is the folder that holds the package: of another state of the repository, say. What may import what is a
contract in ``pyproject.toml``, which ``lint-imports`` checks.
"""

import argparse
import sys
from functools import cache

import grimp

PACKAGE = "torchqat"


def imports_between_rooms(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Pairs of modules in different rooms, of which the first imports the second; the face of the package is no room."""
    pairs = {(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)}
    return {(a, b) for a, b in pairs if PACKAGE not in (a, b) and room_of(a) != room_of(b)}


def room_of(module: str) -> str:
    return module.split(".")[1]


def floors(arrows: set[tuple[str, str]], rooms: set[str]) -> dict[str, int]:
    """The floor of each room, from 1; rooms that import each other, through others or not, share one."""
    below = {room: {b for a, b in arrows if a == room} for room in rooms}

    @cache
    def reached(room: str) -> frozenset[str]:
        seen, new = set(), {room}
        while new:
            seen |= new
            new = {b for a in new for b in below[a]} - seen
        return frozenset(seen)

    @cache
    def circle(room: str) -> frozenset[str]:
        return frozenset(other for other in reached(room) if room in reached(other))

    @cache
    def floor(together: frozenset[str]) -> int:
        under = {circle(b) for a in together for b in below[a]} - {together}
        return 1 + max((floor(one) for one in under), default=0)

    return {room: floor(circle(room)) for room in rooms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="python", help="folder that holds the package")
    parser.add_argument("--list", action="store_true", help="also the rooms of each floor")
    options = parser.parse_args()
    sys.path.insert(0, options.source)
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = {room_of(module) for module in graph.modules if module != PACKAGE}
    imports = imports_between_rooms(graph)
    arrows = {(room_of(a), room_of(b)) for a, b in imports}
    found = floors(arrows, rooms)
    both = sum((b, a) in arrows for a, b in arrows) // 2
    print(
        f"{len(rooms)} rooms on {max(found.values())} floors; {len(imports)} imports between modules of different rooms, "
        f"{len(arrows)} pairs of rooms, {both} of them both ways"
    )
    for floor in sorted(set(found.values()), reverse=True) if options.list else ():
        print(f"{floor:3}  {' '.join(sorted(room for room in rooms if found[room] == floor))}")


if __name__ == "__main__":
    main()
