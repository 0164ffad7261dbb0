"""The record of a finished run: the files that training writes into a seed's folder, and the only reader of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from convatlas.core.digests import digest
from convatlas.core.errors import UserError, first_mistake
from convatlas.core.files import check_regular, write_json, write_text
from convatlas.core.metrics import SCORES, Direction

__all__ = [
    "PARTS",
    "REMEDY",
    "Environment",
    "Metrics",
    "RunRecord",
    "Speeds",
    "Timing",
    "read_failure",
    "write_failure",
]

REMEDY = "delete this run's folder and train it again."
WHOLE_COLUMNS = ("epoch", "step")


class _File(BaseModel):
    """The contents of one JSON file."""

    model_config = ConfigDict(frozen=True)


class Metrics(_File):
    """`metrics.json`: what a run measured; the same bytes for equal runs.

    Attributes:
        monitor: the validation metric that chose the best epoch, such as `val/accuracy`.
        monitor_mode: whether its highest or its lowest value is the best.
        epochs: epochs trained.
        best_epoch: the epoch, from 1, whose weights were tested.
        best: the row of that epoch, metrics alone.
        last: the row of the last epoch, metrics alone.
        test: test metrics by name, without `test/`.
        parts: test metrics of each part of the net that works alone, and of each kind of test-time augmentation.
        costs: see `convatlas.models.costs.Costs`.
    """

    seed: int
    task: str
    data: str
    monitor: str
    monitor_mode: Direction = "max"
    epochs: int
    best_epoch: int
    best: dict[str, float]
    last: dict[str, float]
    test: dict[str, float | None]
    costs: dict[str, int | float | None]
    parts: dict[str, dict[str, float | None]] = {}
    study: str = ""
    variant: str = ""
    model: str = ""
    data_fingerprint: str | None = None

    @property
    def score(self) -> str:
        """The test metric that ranks the run, by its task; another task is ranked by what it monitors."""
        choices = SCORES.get(self.task, ())
        return next((name for name in choices if name in self.test), self.monitor.removeprefix("val/"))

    @property
    def best_score(self) -> float:
        """The monitored metric at the best epoch; NaN where that epoch has none."""
        return self.best.get(self.monitor, math.nan)


PARTS = ("start", "data", "steps", "validation", "test", "figures", "tracking")
"""What a seed's seconds are divided into: until the first step, waiting for batches, the steps without that, ..."""


class Timing(_File):
    """`timing.json`: seconds, which differ between equal runs; None where one was not taken.

    Attributes:
        train_seconds: of all epochs, without validation.
        parts: seconds of each of `PARTS`; `tracking` is what the seed waited for MLflow.
        latency_seconds: of one image, on `device`, in the run's precision, uncompiled; the median after a warm-up.
        device: what the seconds were taken on: the name of the GPU, or "cpu".
        images_per_second: images trained in a second of `train_seconds`, over all processes.
        peak_memory_bytes: most that torch had allocated on the GPU of rank zero while training; None on the CPU.
        mfu: model FLOPs utilisation (Chowdhery et al., PaLM, 2022, appendix B): multiply-adds of forward and backward
            pass, three times the forward's, over the GPU's peak in this precision; None where that is not known.
    """

    train_seconds: float | None = None
    epoch_seconds: list[float] = []
    test_seconds: float | None = None
    latency_seconds: float | None = None
    parts: dict[str, float] = {}
    device: str | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    mfu: float | None = None


class Environment(_File):
    """`environment.json`: code and machine; further keys are kept as they are."""

    model_config = ConfigDict(extra="allow")

    commit: str | None = None
    dirty: bool | None = None
    command: str = ""
    packages: dict[str, str] = {}

    @property
    def machine(self) -> dict[str, Any]:
        """Everything but commit, command and packages."""
        return dict(self.model_extra or {})


class Speeds(_File):
    """`speed.json` in a study's folder: how fast its nets answer and train, from `convatlas measure record=true`.

    Attributes:
        runtime, threads, batch: what answered, see `convatlas.exporting.measuring`.
        machine: its processor.
        nets: by variant and seed, `resnet/seed=0`.
    """

    class Net(_File):
        """A seed's net.

        Attributes:
            identity: digest of what its run's result was decided by.
            latency: median seconds of a batch.
            training_step: mean seconds of a training step, with the run's recipe.
        """

        identity: str
        latency: float
        training_step: float

        FIGURES: ClassVar[tuple[str, ...]] = ("latency", "training_step")

    runtime: str
    threads: int
    batch: int
    machine: str
    nets: dict[str, Net]

    NAME: ClassVar[str] = "speed.json"

    @classmethod
    def of_study(cls, folder: Path) -> Speeds | None:
        """Read the file in a study's folder; None where there is none.

        Raises:
            UserError: it is broken or of another shape.
        """
        path = folder / cls.NAME
        try:
            return cls.model_validate_json(path.read_bytes()) if path.exists() else None
        except ValidationError as error:
            again = f"measure again (`convatlas measure run={folder} record=true`), or delete it."
            raise UserError(f"{path}: {first_mistake(error)}; {again}") from error

    def of(self, key: str, record: RunRecord) -> Net | None:
        """Return those of a seed's net; None where it was not measured, or was trained anew since."""
        net = self.nets.get(key)
        return net if net is not None and net.identity == digest(record.identity) else None


FileT = TypeVar("FileT", bound=_File)


class RunRecord(BaseModel):
    """What one seed's training left: of its files only `metrics.json` has to be there.

    Attributes:
        identity: what decides the result, from `identity.json`; None where that file is missing.
        history: the rows of `history.csv`, one an epoch; a row has no entry for an empty cell.
    """

    model_config = ConfigDict(frozen=True)

    metrics: Metrics
    timing: Timing = Timing()
    environment: Environment = Environment()
    identity: dict[str, Any] | None = None
    history: tuple[dict[str, float], ...] = ()

    @cached_property
    def columns(self) -> dict[str, list[float]]:
        """The history by column, one value an epoch; NaN where a row has none."""
        names = dict.fromkeys(name for row in self.history for name in row)
        return {name: [row.get(name, math.nan) for row in self.history] for name in names}

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Say whether a training has finished in a folder; `read` tells whether its files are whole."""
        return (folder / "metrics.json").is_file()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record in a seed's folder.

        Raises:
            UserError: there is no `metrics.json`, or a file is broken or of another shape; it names the file.
        """
        identity = folder / "identity.json"
        return cls(
            metrics=_read(Metrics, folder / "metrics.json"),
            timing=_read_if_there(Timing, folder / "timing.json"),
            environment=_read_if_there(Environment, folder / "environment.json"),
            identity=_read_mapping(identity) if identity.exists() else None,
            history=tuple(_read_history(folder / "history.csv")),
        )

    def write(self, folder: Path) -> None:
        """Write the files of the record; equal records give equal bytes."""
        write_json(folder / "metrics.json", self.metrics.model_dump())
        write_json(folder / "timing.json", self.timing.model_dump())
        write_json(folder / "environment.json", self.environment.model_dump())
        write_json(folder / "identity.json", self.identity)
        _write_history(folder / "history.csv", self.history)


def write_failure(folder: Path, error: str) -> None:
    """Write why a run has no result, and would have none if it were started again."""
    write_json(folder / "failure.json", {"error": error})


def read_failure(folder: Path) -> str:
    """Return why a run failed; an empty string where it did not.

    Raises:
        UserError: the file does not say.
    """
    path = folder / "failure.json"
    if not path.exists():
        return ""
    error = _read_mapping(path).get("error")
    if not isinstance(error, str) or not error:
        raise UserError(f"{path} does not say what failed; {REMEDY}")
    return error


def _read_mapping(path: Path) -> dict[str, Any]:
    check_regular(path, REMEDY)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {REMEDY}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON; {REMEDY}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no keys and values; {REMEDY}")
    return found


def _read(kind: type[FileT], path: Path) -> FileT:
    try:
        return kind.model_validate(_read_mapping(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_mistake(error)}; {REMEDY}") from error


def _read_if_there(kind: type[FileT], path: Path) -> FileT:
    return _read(kind, path) if path.exists() else kind()


def _read_history(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    check_regular(path, REMEDY)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file, strict=True)
        return [{name: float(value) for name, value in zip(names, row, strict=True) if value} for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is not a table of numbers; {REMEDY}") from error


def _write_history(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write the rows as CSV with every digit, so that equal runs give equal bytes."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: int(value) if name in WHOLE_COLUMNS else repr(value) for name, value in row.items()})
    write_text(path, text.getvalue())
