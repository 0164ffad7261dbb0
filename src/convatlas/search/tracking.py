"""A search in MLflow: one run; every sampled net with reward, latency and the distribution's entropy by step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from convatlas.core.digests import digest
from convatlas.core.files import read_json
from convatlas.data.card import Card
from convatlas.search.config import SearchRun
from convatlas.tracking.runs import IDENTITY, Experiment, Run, end_status, metrics_of, warn


class SearchTracker:
    """Tracks nothing where there is no run.

    A search that goes on after a kill goes on in its run. If the store stops answering, the search goes on without.

    Args:
        run: of MLflow.
        logged: rows by phase that it has already.
    """

    def __init__(self, run: Run | None = None, logged: dict[str, int] | None = None) -> None:
        self.run = run
        self.logged = logged or {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._run() as run:
            if run is not None:
                run.end(end_status(kind))

    @contextmanager
    def _run(self) -> Iterator[Run | None]:
        """Give the run, and warn where the store does not answer."""
        try:
            yield self.run
        except Exception as failure:
            warn(failure)

    def log_rows(self, phase: str, rows: list[dict[str, Any]]) -> None:
        """Log the numbers of new rows as `<phase>/<figure>`, by row; all rows, with the architectures, as a table."""
        import pandas as pd

        first = self.logged.get(phase, 0)
        with self._run() as run:
            if run is None or first >= len(rows):
                return
            metrics = []
            for number, row in enumerate(rows[first:], start=first):
                figures = {k: v for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v)}
                metrics += metrics_of({f"{phase}/{k}": v for k, v in (figures | {"row": number}).items()}, number)
            run.log_metrics(metrics)
            run.client.log_text(run.id, pd.DataFrame(rows).to_csv(index=False), f"{phase}.csv")
            self.logged[phase] = len(rows)

    def log_folder(self, folder: Path) -> None:
        """Log the files of the search; its trainings have runs of their own."""
        with self._run() as run:
            if run is None:
                return
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    run.client.log_artifact(run.id, str(path))


def open_search_tracker(search: SearchRun, card: Card, work: Path) -> SearchTracker:
    """Start a run of the experiment `search_<name>`, in which the trainings at the end are too, or go on with it."""
    if not search.tracking.enabled:
        return SearchTracker()
    experiment = Experiment(search.tracking.uri, f"search_{search.search.name}")
    with experiment.explained():
        run = experiment.resume(work / "mlflow_run_id")
        if run is None:
            known = {"convatlas.role": "search", IDENTITY: digest(read_json(work / "identity.json", "search again."))}
            run = experiment.left_behind(known) or experiment.start(
                f"{search.search.name} seed {search.seed}",
                known | {"convatlas.data": card.fingerprint, "mlflow.source.name": "convatlas.search"},
            )
            run.remember(work / "mlflow_run_id")
        run.log_params(search.identity())
        return SearchTracker(run, {name: len(run.steps(f"{name}/row")) for name in ("search", "random")})
