"""Count the rooms of the source, their arrows and floors: `python benchmarks/import_graph.py [FOLDER]`.

A room is a folder of modules; those at the top of the package are one room, but for `__main__.py` files that start an
entry point. An arrow leads from a room to one that it imports from, also inside functions; imports for type hints alone
do not count. The floor of a room is the length of the longest way down from it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, `from a import b` as `a.b` and as `a`."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def graph(package: Path) -> tuple[dict[str, set[str]], list[tuple[str, str]]]:
    """Return the rooms with those they import from, and the pairs of modules that import each other."""
    modules = {
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
        if file.name != "__main__.py"
    }
    rooms = {name: ".".join(file.parent.relative_to(package.parent).parts) for name, file in modules.items()}
    arrows: dict[str, set[str]] = {room: set() for room in rooms.values()}
    edges = set()
    for name, file in modules.items():
        for target in set(imports(file)) & modules.keys() - {name}:
            edges.add((name, target))
            if rooms[target] != rooms[name]:
                arrows[rooms[name]].add(rooms[target])
    return arrows, sorted((a, b) for a, b in edges if a < b and (b, a) in edges)


def reachable(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """Return the rooms below a room."""
    found: set[str] = set()
    waiting = [room]
    while waiting:
        new = arrows[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def main() -> None:
    """Print the counts."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else "src/convatlas").resolve()
    arrows, pairs = graph(package)
    below = {room: reachable(room, arrows) for room in arrows}
    circles = sorted({tuple(sorted({room, *(r for r in below[room] if room in below[r])})) for room in arrows})
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = 0
            lower = [r for r in arrows[room] if room not in below[r]]
            floors[room] = 1 + max(map(floor, lower), default=0)
        return floors[room]

    lines = sum(file.read_text(encoding="utf-8").count("\n") for file in package.rglob("*.py"))
    count = sum(map(len, arrows.values()))
    print(f"{lines} lines, {len(arrows)} rooms, {count} arrows, {max(map(floor, arrows))} floors")
    print(f"modules that import each other: {pairs or 'none'}")
    print(f"circles of rooms: {[circle for circle in circles if len(circle) > 1] or 'none'}")
    for room in sorted(arrows, key=lambda r: (-floors[r], r)):
        print(f"{floors[room]:3}  {room:<40} -> {', '.join(sorted(arrows[room]))}")


if __name__ == "__main__":
    main()
