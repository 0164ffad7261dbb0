"""A search in MLflow: one run; every sampled net with reward, latency and the distribution's entropy by step."""

from __future__ import annotations

import csv
import io
import math
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convatlas.core.digests import flat
from convatlas.core.files import write_text
from convatlas.search.config import SearchRun
from convatlas.tracking.store import connect, experiment_id, store_lock, tracking_uri
from convatlas.tracking.tracker import LONGEST_VALUE, end_status, mark_dead_runs

if TYPE_CHECKING:
    from convatlas.data.card import Card

__all__ = ["MlflowSearchTracker", "SearchTracker", "open_search_tracker"]


class SearchTracker:
    """Tracks nothing; the interface."""

    def __enter__(self) -> Self:
        """Start tracking."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End tracking."""

    def log_rows(self, phase: str, rows: list[dict[str, Any]]) -> None:
        """Log what is new among the rows of a phase."""

    def log_folder(self, folder: Path) -> None:
        """Log the search's files."""


def open_search_tracker(run: SearchRun, card: Card, work: Path) -> SearchTracker:
    """Return MLflow's tracker, or one that does nothing where tracking is off."""
    return MlflowSearchTracker(run, card, work) if run.tracking.enabled else SearchTracker()


class MlflowSearchTracker(SearchTracker):
    """One run of the experiment `search_<name>`, in which the trainings at the end are, too.

    A search that goes on after a kill goes on in its run. If the store stops answering, the search goes on without.
    """

    def __init__(self, run: SearchRun, card: Card, work: Path) -> None:
        self.run = run
        self.card = card
        self.record = work / "mlflow_run_id"
        self.uri = tracking_uri(run.tracking.uri)
        self.client = connect(self.uri)
        self.experiment = experiment_id(self.client, self.uri, f"search_{run.search.name}")
        self.logged: dict[str, int] = {}
        self.run_id = ""

    def __enter__(self) -> Self:
        """Start a run, or go on with the one that a killed process left."""
        with store_lock(self.uri):
            mark_dead_runs(self.client, self.experiment)
        self.run_id = self._resumed() or self._new_run()
        return self

    def _resumed(self) -> str | None:
        from mlflow.exceptions import MlflowException

        if not self.record.exists():
            return None
        run_id = self.record.read_text().strip()
        try:
            self.client.update_run(run_id, status="RUNNING")
            for phase in ("search", "random"):
                self.logged[phase] = len(self.client.get_metric_history(run_id, f"{phase}/row"))
        except MlflowException:
            return None  # another store than before
        return run_id

    def _new_run(self) -> str:
        from mlflow.entities import Param

        tags = {
            "convatlas.role": "search",
            "convatlas.data": self.card.fingerprint,
            "convatlas.host": socket.gethostname(),
            "convatlas.process": str(os.getpid()),
            "mlflow.source.name": "convatlas.search",
            "mlflow.source.type": "LOCAL",
        }
        name = f"{self.run.search.name} seed {self.run.seed}"
        run_id = str(self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)
        params = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in flat(self.run.identity()).items()]
        for start in range(0, len(params), 100):  # MLflow's limit a request
            self.client.log_batch(run_id, params=params[start : start + 100])
        write_text(self.record, run_id)
        return run_id

    def log_rows(self, phase: str, rows: list[dict[str, Any]]) -> None:
        """Log the numbers of new rows as `<phase>/<figure>`, by row; all rows, with the architectures, as a table."""
        from mlflow.entities import Metric

        first = self.logged.get(phase, 0)
        if first >= len(rows):
            return
        now = int(time.time() * 1000)
        metrics = [
            Metric(f"{phase}/{key}", float(value), now, number)
            for number, row in enumerate(rows[first:], start=first)
            for key, value in {"row": number, **row}.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        ]
        try:
            for start in range(0, len(metrics), 1000):  # MLflow's limit a request
                self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
            self.client.log_text(self.run_id, _table(rows), f"{phase}.csv")
        except Exception as failure:
            print(f"MLflow did not take this: {_line(failure)} The search's own files are complete.", flush=True)
        else:
            self.logged[phase] = len(rows)

    def log_folder(self, folder: Path) -> None:
        """Log the files of the search; its trainings have runs of their own."""
        try:
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    self.client.log_artifact(self.run_id, str(path))
        except Exception as failure:
            print(f"MLflow did not take this: {_line(failure)} The search's own files are complete.", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        try:
            self.client.set_terminated(self.run_id, end_status(kind))
        except Exception as failure:
            print(f"MLflow did not take this: {_line(failure)}", flush=True)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(failure: Exception) -> str:
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]
