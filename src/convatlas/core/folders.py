"""Folders that a command writes whole, and replaces only where all that lies in them is its own.

Where a command writes some files into a folder that others may use as well, these files are its own or not there yet.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from convatlas.core.errors import UserError
from convatlas.core.files import clear_leftovers, full_disk, write_json
from convatlas.core.processes import is_alive

__all__ = ["MARK", "check_replaceable", "check_writable", "claim_files", "put_in_place", "tidy_up", "written_folder"]

MARK = ".convatlas.json"
"""What a command leaves in a folder that it wrote: its own name, and the files that it put there."""
RUN_FILES = {"config.yaml", "identity.json", "environment.json", "metrics.json", "timing.json", "history.csv"}
RUN_FILES |= {"predictions.parquet", "best.ckpt", "last.ckpt", "failure.json"}
"""What a run's folder holds beside `figures/`; runs of earlier versions carry no mark."""


def check_replaceable(folder: Path, command: str, option: str) -> None:
    """Check that a folder holds nothing but what `command` wrote there; one that is empty or missing passes.

    Raises:
        UserError: something else lies in it, and would be lost, or it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{option}={folder} is a file or a link; name a folder.")
    check_writable(folder, option)
    if not folder.exists():
        return
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(f"{option}={folder} holds the folder that you are in; name another.")
    tidy_up(folder, command)
    ours = _written_by(folder, command)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MARK and name not in ours and not (path.is_dir() and not path.is_symlink()):
            raise UserError(
                f"{option}={folder} holds {name}, which {command} did not write and would be deleted; "
                "name another folder, or move it."
            )


def check_writable(path: Path, option: str) -> None:
    """Check that a file or a folder can be made in its place, before the work of which it is the end.

    Raises:
        UserError: the folder around it is protected.
    """
    around = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    if not os.access(around, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(
            f"{option}={path} cannot be written: {around} is protected; change its permissions or name another."
        )


def tidy_up(folder: Path, command: str) -> None:
    """Remove what killed processes left of a folder that `command` wrote, and of its files."""
    _clear_leftovers(folder)
    for name in (MARK, *_written_by(folder, command)):
        clear_leftovers(folder / name)


def claim_files(folder: Path, command: str, names: Sequence[str], option: str) -> None:
    """Mark `names` in a folder as what `command` writes there, one after the other; other files are left alone.

    Raises:
        UserError: one of them is there, and the command did not write it.
    """
    ours = _written_by(folder, command) if folder.is_dir() else set()
    for name in names:
        if (folder / name).exists() and name not in ours:
            raise UserError(
                f"{option}={folder} holds {name}, which {command} did not write and would be overwritten; "
                "name another folder, or move it."
            )
    if ours != set(names):
        write_json(folder / MARK, {"command": command, "files": sorted(names)})


def _written_by(folder: Path, command: str) -> set[str]:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return set(mark["files"]) if mark["command"] == command else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        if command != "train" or not {"identity.json", "failure.json"} & {path.name for path in folder.iterdir()}:
            return set()
        return RUN_FILES | {f"figures/{path.name}" for path in folder.glob("figures/*.png")}


@contextmanager
def written_folder(folder: Path, command: str, option: str) -> Iterator[Path]:
    """Write a folder under another name; it takes its place when the block ends well, and leaves nothing otherwise.

    Raises:
        UserError: `folder` holds what the command did not write.
    """
    _clear_leftovers(folder)
    check_replaceable(folder, command, option)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        put_in_place(partial, folder, command, option)
    except OSError as error:
        if (full := full_disk(error)) is None:
            raise
        raise OSError(full.errno, full.strerror, str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear_leftovers(folder: Path) -> None:
    """Tidy up behind killed processes; one that was killed between its two renames left the old folder aside."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        _, process, state = leftover.name.rsplit(".", 2) if leftover.name.count(".") > 2 else ("", "", "")
        if state not in ("partial", "old") or not process.isdecimal() or is_alive(int(process)):
            continue
        if state == "old" and not folder.exists():
            leftover.rename(folder)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def put_in_place(new: Path, folder: Path, command: str, option: str) -> None:
    """Mark the folder `new` and give it the name `folder`; at every moment one of the two stands there.

    Raises:
        UserError: `folder` holds what the command did not write.
    """
    files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
    write_json(new / MARK, {"command": command, "files": files})
    _clear_leftovers(folder)
    check_replaceable(folder, command, option)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.replace(aside)
    new.replace(folder)
    shutil.rmtree(aside, ignore_errors=True)
