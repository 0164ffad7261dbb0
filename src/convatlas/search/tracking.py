"""A search in MLflow: one run; every sampled net with reward, latency and the distribution's entropy by step."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convatlas.search.config import SearchRun
from convatlas.tracking.runs import Experiment, end_status, metrics_of, warn

if TYPE_CHECKING:
    from convatlas.data.card import Card


class SearchTracker:
    """Tracks nothing; the interface."""

    def __enter__(self) -> Self:
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

    def __init__(self, search: SearchRun, card: Card, work: Path) -> None:
        experiment = Experiment(search.tracking.uri, f"search_{search.search.name}")
        self.logged: dict[str, int] = {}
        with experiment.explained():
            resumed = experiment.resume(work / "mlflow_run_id")
            if resumed is not None:
                self.run = resumed
                self.logged = {phase: len(resumed.steps(f"{phase}/row")) for phase in ("search", "random")}
                return
            tags = {
                "convatlas.role": "search",
                "convatlas.data": card.fingerprint,
                "mlflow.source.name": "convatlas.search",
            }
            self.run = experiment.start(f"{search.search.name} seed {search.seed}", tags)
            self.run.remember(work / "mlflow_run_id")
            self.run.log_params(search.identity())

    def log_rows(self, phase: str, rows: list[dict[str, Any]]) -> None:
        """Log the numbers of new rows as `<phase>/<figure>`, by row; all rows, with the architectures, as a table."""
        first = self.logged.get(phase, 0)
        if first >= len(rows):
            return
        metrics = []
        for number, row in enumerate(rows[first:], start=first):
            figures = {k: v for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)} | {
                "row": number
            }
            metrics += metrics_of({f"{phase}/{key}": value for key, value in figures.items()}, number)
        try:
            self.run.log_metrics(metrics)
            self.run.client.log_text(self.run.id, _table(rows), f"{phase}.csv")
        except Exception as failure:
            warn(failure)
        else:
            self.logged[phase] = len(rows)

    def log_folder(self, folder: Path) -> None:
        try:
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    self.run.client.log_artifact(self.run.id, str(path))
        except Exception as failure:
            warn(failure)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.run.end(end_status(kind))
        except Exception as failure:
            warn(failure)


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
