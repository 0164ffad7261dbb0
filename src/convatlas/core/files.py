"""Files that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from convatlas.core.errors import UserError
from convatlas.core.processes import is_alive

MAX_DEPTH = 100
MAX_NODES = 1_000_000
# libyaml reads eight times as fast; a build of PyYAML without it has the other.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; it takes the name `path` only when the block ends well.

    Raises:
        OSError: it cannot be written; it names `path`, also where a library hides that the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _RememberingFile(temporary, "wb") as raw:
            try:
                file = io.BufferedWriter(raw)
                yield file
                file.flush()
                os.fsync(file.fileno())
            except Exception as error:
                failed = raw.failed or (error if isinstance(error, OSError) else full_disk(error))
                if failed is None or failed.filename not in (None, str(temporary)):
                    raise
                raise OSError(failed.errno, failed.strerror, str(path)) from error
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of a file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-2]
        if process.isdecimal() and not is_alive(int(process)):
            leftover.unlink(missing_ok=True)


class _RememberingFile(io.FileIO):
    """A file that remembers why it could not be written: torch.save raises a RuntimeError of its own instead."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error of a full disk among an error and those behind it: libraries hide it behind their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if re.search(r"disk is full|No space left on device", str(error)):  # SQLite's, and others' words
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON, readable for people and the same bytes for the same values."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_yaml(path: Path, value: Any, header: str = "") -> None:
    """Write plain values as YAML in the order they have, under comment lines."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    write_text(path, comment + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))


def read_yaml(path: Path, remedy: str) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it is not there or not YAML; `remedy` ends the sentence.
    """
    check_regular(path, remedy)
    try:
        text = path.read_text(encoding="utf-8")
        _check_size(text)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - it is a safe one
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable as YAML; {remedy}") from error


def check_regular(path: Path, remedy: str) -> None:
    """Refuse what has no end, such as a device or a pipe; a folder says so itself when it is read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is no regular file; {remedy}")


def _check_size(text: str) -> None:
    """Refuse what is nested too deep or refers to itself too often.

    libyaml's loader calls itself at every level, and would crash the process; and a few lines of references to
    references stand for more values than any memory holds.
    """
    known: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = []  # anchor, and the values before it
    nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            known |= {} if anchor is None else {anchor: nodes - before}
        elif isinstance(event, yaml.NodeEvent):
            nodes += known.get(str(event.anchor), 1) if isinstance(event, yaml.AliasEvent) else 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, nodes - 1))
        if len(open_ones) > MAX_DEPTH or nodes > MAX_NODES:
            raise yaml.YAMLError(f"it holds more than {MAX_DEPTH} levels or {MAX_NODES} values")


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file; raises as `read_yaml` does."""
    check_regular(path, remedy)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON; {remedy}") from error
