"""Where an unfinished training lives: outside what DVC deletes, locked, and known by what it was started with."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convatlas.core.digests import flat
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json
from convatlas.core.folders import MARK

FIRST, LAST = ("fitted", "last.ckpt"), "identity.json"
"""What is deleted first and last: a kill in between leaves a folder that is known by its identity and starts afresh."""
FILES = {*FIRST, LAST, "best.ckpt", "mlflow_run_id", "reported.json", "search.state", "random.state"}
"""The files of an unfinished training, trial or search; it has them in the folders below as well."""
FOLDERS = {"finals", "results"}

__all__ = ["WorkFolder", "acquire_lock", "difference", "read_identity", "release_lock"]


@dataclass
class WorkFolder:
    """The folder of one seed's unfinished training.

    Attributes:
        path: the folder; it holds `identity.json`, the checkpoints and the id of the MLflow run.
        identity: configuration, code and data that decide the result; a training goes on only under the same.
        strict: refuse changed settings, as for a folder that a user chose. A stage of the pipeline starts afresh
            instead, since DVC runs it again exactly because something changed.
    """

    path: Path
    identity: dict[str, Any]
    strict: bool
    _lock: FileLock | None = field(default=None, repr=False)

    @property
    def last(self) -> Path:
        """The checkpoint from which a killed training goes on."""
        return self.path / "last.ckpt"

    @property
    def begin_anew(self) -> str:
        """What helps where a checkpoint of the unfinished training is damaged."""
        return f"delete {self.path} and start again"

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch so far."""
        return self.path / "best.ckpt"

    @property
    def fitted(self) -> Path:
        """A mark that training is over and only the test is left."""
        return self.path / "fitted"

    @property
    def results(self) -> Path:
        """What will become the run's folder."""
        return self.path / "results"

    @property
    def _lock_file(self) -> Path:
        folder = self.path.resolve()
        return folder.with_name(f".{folder.name}.lock")

    def is_left(self) -> bool:
        """Say whether this very training left something here, be it what a kill in the middle of `remove` left."""
        recorded = self.path / LAST
        if recorded.exists():
            return bool(read_json(recorded, f"delete {self.path}.") == self.identity)
        return (self.path.is_dir() or self._lock_file.exists()) and self._foreign() is None

    def open(self, *, overwrite: bool) -> None:
        """Lock the folder, and keep what it holds if it belongs to this very training.

        Raises:
            UserError: another process works in it, or it belongs to other settings.
        """
        self._lock = acquire_lock(
            self._lock_file, f"Another process is training in {self.path}. Wait for it, or stop it."
        )
        try:
            self._take_over(overwrite)
        except BaseException:
            self.close()
            raise

    def _take_over(self, overwrite: bool) -> None:
        recorded = self.path / LAST
        if (self.path / MARK).exists():
            raise UserError(f"{self.path} holds a finished run, not an unfinished one; choose another work_dir.")
        if not recorded.exists() and (foreign := self._foreign()):
            raise UserError(
                f"{self.path} holds {foreign}, which no training wrote; choose another work_dir or output_dir."
            )
        if overwrite:
            self._clear()
        elif recorded.exists():
            before = read_identity(recorded, f"delete {self.path} and start again.")
            if before != self.identity:
                if self.strict:
                    raise UserError(self._changed(before))
                print(f"{self.path} belongs to an earlier plan ({difference(before, self.identity)}): starting afresh.")
                self._clear()
        if not recorded.exists():
            self._clear()
            write_json(recorded, self.identity)

    def _foreign(self) -> str | None:
        """Return something in the folder that is none of a training's, where its beginning was not written down."""
        found = self.path.rglob("*") if self.path.is_dir() else ()
        return next((path.name for path in found if not path.name.startswith(f".{LAST}.")), None)

    def _clear(self) -> None:
        """Delete what a training left in the folder, and the folder unless something else lies in it."""
        if not self.path.is_dir():
            return
        found = {path.name: path for path in self.path.iterdir()}
        for name in [*FIRST, *sorted(found.keys() - {*FIRST, LAST}), LAST]:
            path = found.get(name)
            if path is None:
                continue
            if name in FOLDERS:
                shutil.rmtree(path, ignore_errors=True)
            elif name in FILES or any(name.startswith(f".{own}.") and name.endswith(".tmp") for own in FILES):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def _changed(self, before: dict[str, Any]) -> str:
        return (
            f"{self.path} holds an unfinished training with other settings ({difference(before, self.identity)}). "
            "Start it with the old settings to finish it, choose another output_dir, or pass overwrite=true."
        )

    def remove(self) -> None:
        """Delete what the training left, and only then unlock the folder."""
        self._clear()
        self.close()

    def discard(self) -> None:
        """Delete what a kill in the middle of `remove` left of a training whose result is kept elsewhere."""
        if self.path.is_dir() or self._lock_file.exists():
            self.open(overwrite=True)
            self.remove()

    def close(self) -> None:
        """Unlock the folder, and remove empty folders around it inside `.work`."""
        if self._lock is None:
            return
        release_lock(self._lock)
        self._lock = None
        self.tidy_up()

    def tidy_up(self) -> None:
        """Remove empty folders around it inside `.work`."""
        for parent in self.path.parents[:2]:
            if ".work" in parent.parts[-3:]:
                with suppress(OSError):  # it is in use, or another process has just removed it
                    parent.rmdir()


def acquire_lock(file: Path, busy: str) -> FileLock:
    """Lock `file`, which is made with its folder, without waiting.

    Raises:
        UserError: another process holds the lock; `busy` is the message.
    """
    lock = FileLock(file)
    for attempt in range(100):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
            break
        except (FileNotFoundError, FileExistsError):  # another process has just removed the empty folder
            if attempt == 99:
                raise
        except Timeout as error:
            raise UserError(busy) from error
    return lock


def release_lock(lock: FileLock) -> None:
    """Remove a lock's file, then unlock it: in the other order the file could be the next holder's."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def read_identity(file: Path, remedy: str) -> dict[str, Any]:
    """Read an `identity.json`.

    Raises:
        UserError: it is damaged or missing; `remedy` ends the message.
    """
    found = read_json(file, remedy)
    if not isinstance(found, dict):
        raise UserError(f"{file} does not hold an identity; {remedy}")
    return found


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the first settings in which two identities differ."""
    old, new = flat(before), flat(now)
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    words = {"code": "the code changed", "data": "the prepared data changed"}
    named = [words.get(k, f"{k.removeprefix('config.')} was {old.get(k)}, now {new.get(k)}") for k in keys]
    return "; ".join(named[:3]) + (f"; and {len(named) - 3} more" if len(named) > 3 else "")
