"""The manifest of a data set's raw files: whether a preparation has to be made again, without reading all of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

__all__ = ["manifest"]

READ_WHOLE = 64 * 2**20
"""Bytes up to which the files' contents count; of larger sets their names, sizes and times do."""


def manifest(root: Path) -> dict[str, Any]:
    """Return number, bytes and a digest of the files below `root`, linked folders included.

    What a download leaves unfinished does not count.
    """
    files = sorted(_files(root))
    states = [(file, file.stat()) for file in files]
    size = sum(state.st_size for _, state in states)
    whole = size <= READ_WHOLE
    total = hashlib.sha256()
    for file, state in states:
        content = hashlib.sha256(file.read_bytes()).hexdigest() if whole else str(state.st_mtime_ns)
        total.update(
            f"{file.relative_to(root).as_posix()}\0{state.st_size}\0{content}\n".encode(errors="surrogateescape")
        )
    return {
        "files": len(files),
        "bytes": size,
        "compared_by": "content" if whole else "time",
        "digest": total.hexdigest(),
    }


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if _new(os.path.realpath(Path(folder, name)), seen)]
        found += [
            path for name in names if not name.endswith((".part", ".lock")) and (path := Path(folder, name)).is_file()
        ]
    return found


def _new(real: str, seen: set[str]) -> bool:
    """Say whether a folder was not met before: links may lead round in a circle."""
    return real not in seen and not seen.add(real)  # type: ignore[func-returns-value]
