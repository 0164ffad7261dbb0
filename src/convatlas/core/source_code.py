"""The code behind a run: which of the project's files it imports, and fingerprints that comments do not change.

A training is repeated when its code changes, and only then. What it imports is read from the sources, without running
them; what counts in a file is its syntax tree without docstrings.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from convatlas.core.config import RunConfig

__all__ = ["files_imported_by", "fingerprint", "run_code"]

SOURCE = Path(__file__).resolve().parents[2]
PROJECT = SOURCE.parent


def run_code(config: RunConfig) -> dict[str, str]:
    """Return the files that decide the result of one training, relative to the project, with their fingerprints.

    They are what it imports of `models`, `tasks`, `data` and `training`. The rest (the command line, the types of the
    configuration, tracking) acts on the result through the configuration alone, or not at all.
    """
    tasks = SOURCE / "convatlas" / "tasks"
    task = tasks / f"{config.data.task}.py"
    others = {tasks / f"{name}.py" for name in ("classification", "detection", "segmentation")} - {task}
    net = SOURCE.joinpath(*config.model["_target_"].split(".")[:-1]).with_suffix(".py")
    files = files_imported_by([SOURCE / "convatlas" / "train.py", task, net], others)
    rooms = {SOURCE / "convatlas" / name for name in ("models", "tasks", "data", "training")}
    deciding = [file for file in files if rooms.intersection(file.parents)]
    return {file.relative_to(PROJECT).as_posix(): fingerprint(file)[:16] for file in deciding}


def files_imported_by(entries: Iterable[Path], left_out: Iterable[Path] = ()) -> list[Path]:
    """Return every file of the project that running `entries` may import, themselves included.

    Imports inside functions count, those under `if TYPE_CHECKING` do not.

    Args:
        entries: files to start from.
        left_out: files that are not followed although something names them.
    """
    seen: set[Path] = set()
    not_followed = set(left_out)
    waiting = list(entries)
    while waiting:
        file = waiting.pop()
        if file in seen or file in not_followed or not file.is_file():
            continue
        seen.add(file)
        waiting += _imports(file)
    return sorted(seen)


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in _nodes_that_run(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name for name in names if name.partition(".")[0] == "convatlas"}
    packages = {".".join(name.split(".")[:n]) for name in ours for n in range(1, name.count(".") + 1)}
    return tuple(found for name in sorted(ours | packages) if (found := _module_file(name)) is not None)


def _nodes_that_run(tree: ast.AST) -> Iterable[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
        yield node
        yield from _nodes_that_run(node)


def _module_file(module: str) -> Path | None:
    path = SOURCE.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def fingerprint(file: Path) -> str:
    """Return the sha256 of what Python makes of a file: comments, layout and docstrings do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if has_docstring and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
