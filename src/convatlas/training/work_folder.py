"""Where an unfinished training lives: outside what DVC deletes, locked, and known by what it was started with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convatlas.core.digests import flat
from convatlas.core.errors import UserError
from convatlas.core.files import read_json, write_json


@dataclass
class WorkFolder:
    """The folder of one seed's unfinished training.

    Attributes:
        path: the folder; it holds `identity.json`, the checkpoints and the id of the MLflow run.
        identity: configuration, code and data that decide the result; a training goes on only under the same.
        strict: a person started the training in a folder of their choice: changed settings are refused. A stage of the
            pipeline starts afresh instead, since DVC runs it again exactly because something changed.
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

    def open(self, *, overwrite: bool) -> None:
        """Lock the folder, and keep what it holds if it belongs to this very training.

        Raises:
            UserError: another process works in it, or it belongs to other settings.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(f"Another process is training in {self.path}. Wait for it, or stop it.") from error
        recorded = self.path / "identity.json"
        if overwrite:
            shutil.rmtree(self.path, ignore_errors=True)
        elif recorded.exists():
            before = read_json(recorded, "delete the folder and start again.")
            if before != self.identity:
                if self.strict:
                    raise UserError(self._changed(before))
                print(f"{self.path} belongs to an earlier plan ({difference(before, self.identity)}): starting afresh.")
                shutil.rmtree(self.path)
        if not recorded.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            write_json(recorded, self.identity)

    def _changed(self, before: dict[str, Any]) -> str:
        return (
            f"{self.path} holds an unfinished training with other settings ({difference(before, self.identity)}). "
            "Start it with the old settings to finish it, choose another output_dir, or pass overwrite=true."
        )

    def remove(self) -> None:
        """Delete the folder and let others have it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None
            for parent in (self.path.parent, self.path.parent.parent):
                if not any(parent.iterdir()):
                    parent.rmdir()


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Name the first settings in which two identities differ."""
    old, new = flat(before), flat(now)
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    words = {"code": "the code changed", "data": "the prepared data changed"}
    named = [words.get(k, f"{k.removeprefix('config.')} was {old.get(k)}, now {new.get(k)}") for k in keys]
    return "; ".join(named[:3]) + (f"; and {len(named) - 3} more" if len(named) > 3 else "")
