"""Runs of an experiment in MLflow: found or made, filled under names and in pieces that MLflow takes, and ended."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.digests import digest, flat
from convatlas.core.files import write_text
from convatlas.core.passwords import without_password
from convatlas.tracking.store import connect, experiment_id, explained, first_sentence, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities import Run as Found

__all__ = ["IDENTITY", "Experiment", "Run", "clean_names", "end_status", "mark_dead_runs", "metrics_of", "warn"]

IDENTITY = "convatlas.identity"
"""The tag by which a run is known again: a digest of all that decides its result."""
MAX_VALUE = 500  # characters of a parameter; the configuration is there whole as an artifact
MAX_NAME = 250  # characters, and the limits of one request: MLflow's
MAX_METRICS, MAX_PARAMS = 1000, 100


class Experiment:
    """An experiment of a store that answers; it is made if there is none.

    Args:
        uri: of the store, as in `tracking.uri`.
        name: of the experiment.

    Raises:
        UserError: the store cannot be used.
    """

    def __init__(self, uri: str | None, name: str) -> None:
        self.uri = tracking_uri(uri)
        self.client = connect(self.uri)
        with self.explained():
            self.id = experiment_id(self.client, self.uri, name)
            with store_lock(self.uri):
                mark_dead_runs(self)

    def explained(self, problem: str = "does not answer") -> AbstractContextManager[None]:
        """Turn whatever the store raises into one sentence, a `UserError`."""
        return explained(self.uri, problem)

    def search(self, query: str) -> list[Found]:
        """Return the runs that a filter of MLflow finds, the newest first."""
        return list(self.client.search_runs([self.id], query, max_results=1000))

    def start(self, name: str, tags: Mapping[str, str]) -> Run:
        """Start a run of this process."""
        source = {"mlflow.source.type": "LOCAL", **_process_tags(), **tags}
        return Run(self, self.client.create_run(self.id, run_name=name, tags=source).info.run_id)

    def resume(self, record: Path) -> Run | None:
        """Go on with the run whose id a killed process left in a file; None where there is none in this store."""
        from mlflow.exceptions import MlflowException

        try:
            run = Run(self, record.read_text(encoding="utf-8").strip())
            return self.take_over(run) if run.found.info.experiment_id == self.id else None
        except (FileNotFoundError, MlflowException):
            return None

    def left_behind(self, tags: Mapping[str, str]) -> Run | None:
        """Go on with a run of these tags whose process was killed before it could note the run's id."""
        query = " and ".join(["status = 'KILLED'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())])
        empty = [found.info.run_id for found in self.search(query) if not found.data.metrics]
        return self.take_over(Run(self, empty[0])) if empty else None

    def take_over(self, run: Run) -> Run:
        """Let a run be one of this process."""
        self.client.update_run(run.id, status="RUNNING")
        run.set_tags(_process_tags())
        return run


class Run:
    """One run."""

    def __init__(self, experiment: Experiment, run_id: str) -> None:
        self.id = run_id
        self.client = experiment.client

    @property
    def found(self) -> Found:
        """What the store has of the run now."""
        return self.client.get_run(self.id)

    def steps(self, metric: str) -> set[int]:
        """Return the steps at which the store has a metric."""
        return {found.step for found in self.client.get_metric_history(self.id, metric)}

    def remember(self, record: Path) -> None:
        """Write the id where the next process finds it."""
        write_text(record, self.id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log nested values as parameters; those that are there already stay, since MLflow lets none be changed."""
        from mlflow.entities import Param

        there = self.found.data.params
        new = [
            Param(name, without_password(str(value))[:MAX_VALUE])
            for name, value in clean_names(flat(values)).items()
            if name not in there
        ]
        for start in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(self.id, params=new[start : start + MAX_PARAMS])

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Log metrics."""
        for start in range(0, len(metrics), MAX_METRICS):
            self.client.log_batch(self.id, metrics=metrics[start : start + MAX_METRICS])

    def log_files(self, folder: Path) -> None:
        """Log the files below a folder, except checkpoints and what is hidden."""
        for path in sorted(_files(folder)):
            place = path.parent.relative_to(folder).as_posix()
            self.client.log_artifact(self.id, str(path), None if place == "." else place)

    def end(self, status: str, end_time: int | None = None) -> None:
        """End the run, though never before it began, as after a clock that was set back."""
        now = max(int(time.time() * 1000), self.found.info.start_time)
        self.client.set_terminated(self.id, status, end_time or now)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".ckpt" and not path.name.startswith("."):
            yield path


def metrics_of(values: Mapping[str, float | None], step: int) -> list[Metric]:
    """Return values as metrics of this moment, under names that MLflow takes; None is left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in clean_names(values).items() if value is not None]


def clean_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under names that MLflow takes: `dice_a(b)` is `dice_a_b_`, and no two share a name."""
    cleaned: dict[str, Any] = {}
    for name, value in values.items():
        clean = re.sub(r"[^/\w.\- :]", "_", name)
        clean = re.sub(r"/(?=/|$)|(?<=/)\.{1,2}(?=/|$)|^[/.]+", "_", clean)  # what a path would not keep
        if clean in cleaned or len(clean) > MAX_NAME or (clean != name and clean in values):
            clean = f"{clean[: MAX_NAME - 9]}_{digest(name)[:8]}"
        cleaned[clean] = value
    return cleaned


def end_status(error: type[BaseException] | None) -> str:
    """Return MLflow's word for how a run ended: a failure is FAILED, an interruption KILLED."""
    if error is None:
        return "FINISHED"
    return "FAILED" if issubclass(error, Exception) else "KILLED"


def mark_dead_runs(experiment: Experiment) -> None:
    """Mark runs as KILLED that still say RUNNING though their process on this machine is gone."""
    import psutil

    query = f"attributes.status = 'RUNNING' and tags.`convatlas.host` = '{socket.gethostname()}'"
    for run in experiment.search(query):
        pid = int(run.data.tags.get("convatlas.process", "0"))
        if pid != os.getpid() and not psutil.pid_exists(pid):
            experiment.client.set_terminated(run.info.run_id, "KILLED")


def _process_tags() -> dict[str, str]:
    return {"convatlas.host": socket.gethostname(), "convatlas.process": str(os.getpid())}


def warn(failure: Exception, remedy: str = "") -> None:
    """Print that the store did not take something, which the training does not wait for."""
    message = f"MLflow did not take this: {first_sentence(failure)} The run's own files are complete. {remedy}"
    print(message.strip(), file=sys.stderr, flush=True)
