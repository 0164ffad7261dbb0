"""Trackers: of a variant (the parent run) and of a seed (its child), and two that do nothing where tracking is off."""

from __future__ import annotations

import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convatlas.core.config import RunConfig
from convatlas.core.digests import digest, flat
from convatlas.core.files import read_json, write_text
from convatlas.core.processes import rank
from convatlas.tracking.sender import Sender
from convatlas.tracking.store import connect, experiment_id, store_lock, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from convatlas.data.card import Card

PARENT = "mlflow.parentRunId"
ONCE = 0  # the step of what is measured once: MLflow draws a bar a run of it, and curves of the others
LONGEST_VALUE = 500  # longer ones are cut as parameters; the configuration is there whole as an artifact


def open_tracker(config: RunConfig, card: Card) -> VariantTracker:
    """Return the tracker of a variant: MLflow's on rank zero, and elsewhere one that does nothing."""
    if rank() > 0 or not config.tracking.enabled:
        return VariantTracker()
    return MlflowVariantTracker(config, card)


class SeedTracker:
    """Tracks nothing; the interface of a seed's tracker."""

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log the metrics of one epoch."""

    def log_results(self, folder: Path) -> None:
        """Log the test's metrics, the costs, the files and the net."""

    def end(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""


class VariantTracker:
    """Tracks nothing; the interface of a variant's tracker."""

    def __enter__(self) -> Self:
        """Start tracking."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End tracking."""

    def start_seed(self, seed: int, work: Path) -> SeedTracker:
        """Start tracking a seed; `work` is where its unfinished training lives."""
        return SeedTracker()


class MlflowVariantTracker(VariantTracker):
    """The parent run of a variant."""

    def __init__(self, config: RunConfig, card: Card) -> None:
        self.config = config
        self.card = card
        self.uri = tracking_uri(config.tracking.uri)
        self.client: MlflowClient = connect(self.uri)
        self.experiment = experiment_id(self.client, self.uri, config.study)
        self.variant = digest([config.identity, card.fingerprint])
        self.run_id = ""
        self.models: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Find the variant's run or make it, and mark the runs of dead processes as killed."""
        with store_lock(self.uri):
            mark_dead_runs(self.client, self.experiment)
            self.run_id = self._oldest_run() or self._new_run()
        if (oldest := self._oldest_run()) != self.run_id:  # on a server no lock keeps two processes from making one
            self.client.delete_run(self.run_id)
            self.run_id = oldest
        self.client.update_run(self.run_id, status="RUNNING")
        _set_tags(self.client, self.run_id, _process_tags())
        return self

    def _oldest_run(self) -> str:
        """Return this variant's run; an empty word if there is none."""
        query = f"tags.`convatlas.variant` = '{self.variant}' and tags.`convatlas.role` = 'variant'"
        found = self.client.search_runs([self.experiment], query)
        return min(((run.info.start_time, run.info.run_id) for run in found), default=(0, ""))[1]

    def _new_run(self) -> str:
        tags = {"convatlas.role": "variant", **self.common_tags(), **_process_tags()}
        run = self.client.create_run(self.experiment, run_name=self.config.variant, tags=tags)
        _log_params(self.client, run.info.run_id, self.config)
        return str(run.info.run_id)

    def common_tags(self) -> dict[str, str]:
        """Return the tags of a variant and its seeds: which plan, which data, which code."""
        from convatlas.core.environment import git_state

        state = git_state()
        commit = {"mlflow.source.git.commit": state["commit"]} if state["commit"] else {}
        return {
            "convatlas.study": self.config.study,
            "convatlas.variant": self.variant,
            "convatlas.data": self.card.fingerprint,
            "convatlas.model": self.config.about.title,
            "convatlas.dirty": str(state["dirty"]).lower(),
            "mlflow.source.name": "convatlas.train",
            "mlflow.source.type": "LOCAL",
            **commit,
        }

    def start_seed(self, seed: int, work: Path) -> SeedTracker:
        """Start a child run, or go on with the one that a killed process left.

        A store that has gone since the first seed costs the record of this one, not its training.
        """
        try:
            return MlflowSeedTracker(self, seed, work)
        except Exception as failure:
            warn(failure)
            return SeedTracker()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Log mean and spread over the finished seeds, and end the run."""
        status = end_status(kind)
        try:
            if status == "FINISHED":
                self._log_mean_and_spread()
                self._register()
            self.client.set_terminated(self.run_id, status)
        except Exception as failure:
            warn(failure)
            if error is None and self.config.tracking.register_as:
                raise

    def _log_mean_and_spread(self) -> None:
        folders = sorted(path.parent for path in self.config.output_dir.glob("seed=*/metrics.json"))
        if not folders:
            return
        if self.client.get_run(self.run_id).data.metrics:
            self._replace_run()  # MLflow keeps every value of a metric: a second mean would stand beside the first
        histories = [_read_history(folder / "history.csv") for folder in folders]
        now = int(time.time() * 1000)
        metrics = []
        for epoch in range(1, max(map(len, histories)) + 1):
            rows = [history[epoch - 1] for history in histories if len(history) >= epoch]
            metrics += _mean_and_spread(rows, epoch, now, spread=len(folders) > 1)
        finals = [_final_metrics(folder) for folder in folders]
        metrics += _mean_and_spread(finals, ONCE, now, spread=len(folders) > 1)
        _log_metrics(self.client, self.run_id, metrics)
        _log_costs(self.client, self.run_id, folders[0])
        self.client.set_tag(self.run_id, "convatlas.seeds", str(len(folders)))

    def _replace_run(self) -> None:
        old, self.run_id = self.run_id, self._new_run()
        children = self.client.search_runs([self.experiment], f"tags.`{PARENT}` = '{old}'", max_results=1000)
        for child in children:
            self.client.set_tag(child.info.run_id, PARENT, self.run_id)
        self.client.delete_run(old)

    def _register(self) -> None:
        name = self.config.tracking.register_as
        if not name or not self.models:
            return
        import mlflow

        def validation_score(seed: int) -> float:
            metrics = read_json(self.config.output_dir / f"seed={seed}" / "metrics.json", "train again.")
            return float(metrics["best"][metrics["monitor"]])

        best = max(self.models, key=validation_score)
        version = mlflow.register_model(self.models[best], name)
        if self.config.tracking.alias:
            self.client.set_registered_model_alias(name, self.config.tracking.alias, version.version)


class MlflowSeedTracker(SeedTracker):
    """The child run of one seed."""

    def __init__(self, variant: MlflowVariantTracker, seed: int, work: Path) -> None:
        self.variant = variant
        self.client = variant.client
        self.config = variant.config
        self.seed = seed
        self.run_id, self._logged = self._resumed(work / "mlflow_run_id")
        self._sender = Sender(lambda metrics: _log_metrics(self.client, self.run_id, metrics), warn)
        self._monitor: Any = None
        if self.config.tracking.system_metrics:
            self._start_system_metrics()

    def _resumed(self, record: Path) -> tuple[str, set[int]]:
        """Return the run of this training and the epochs it has; a new run if there is none."""
        from mlflow.exceptions import MlflowException

        if record.exists():
            run_id = record.read_text().strip()
            try:
                self.client.update_run(run_id, status="RUNNING")
                _set_tags(self.client, run_id, {PARENT: self.variant.run_id, **_process_tags()})
                return run_id, {metric.step for metric in self.client.get_metric_history(run_id, "lr")}
            except MlflowException:
                pass  # another store than before: start a run there
        tags = {"convatlas.role": "seed", PARENT: self.variant.run_id, **self.variant.common_tags(), **_process_tags()}
        run = self.client.create_run(
            self.variant.experiment, run_name=f"{self.config.variant} seed {self.seed}", tags=tags
        )
        run_id = str(run.info.run_id)
        write_text(record, run_id)
        _log_params(self.client, run_id, self.config, seed=self.seed)
        self._log_lineage(run_id)
        return run_id, set()

    def _log_lineage(self, run_id: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        card = self.variant.card
        dataset = Dataset(
            name=card.name,
            digest=card.fingerprint[:36],  # MLflow's limit
            source_type="local",
            source=f'{{"uri": "{self.config.data.prepared.as_posix()}"}}',
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self.client.log_inputs(run_id, inputs)
        except MlflowException:  # another process entered the same data in this moment; it is there now
            self.client.log_inputs(run_id, inputs)

    def _start_system_metrics(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=bool(self._logged), tracking_uri=self.variant.uri
        )
        self._monitor.start()

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log an epoch in one request, without waiting for the answer."""
        epoch = int(row["epoch"])
        if epoch not in self._logged:
            self._sender.put(_metrics({k: v for k, v in row.items() if k not in ("epoch", "step")}, epoch, _now()))
            self._logged.add(epoch)

    def log_results(self, folder: Path) -> None:
        """Log the test's metrics, the costs, the run's files and, on request, the net as a model that can be served."""
        try:
            metrics = self._sender.close() + self._forgotten(folder) + _metrics(_final_metrics(folder), ONCE, _now())
            _log_metrics(self.client, self.run_id, metrics)
            _log_costs(self.client, self.run_id, folder)
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix != ".ckpt":
                    place = path.parent.relative_to(folder).as_posix()
                    self.client.log_artifact(self.run_id, str(path), None if place == "." else place)
            if self.config.tracking.log_model:
                from convatlas.tracking.serving import log_served_model

                self.variant.models[self.seed] = log_served_model(self.run_id, self.config, self.variant.card, folder)
        except Exception as failure:
            if self.config.tracking.register_as:
                raise
            warn(failure)

    def _forgotten(self, folder: Path) -> list[Metric]:
        """Return the epochs that are in the history alone: a process was killed before it had sent them."""
        history = enumerate(_read_history(folder / "history.csv"), start=1)
        rows = [_metrics(row, epoch, _now()) for epoch, row in history if epoch not in self._logged]
        return [metric for row in rows for metric in row]

    def end(self, status: str) -> None:
        """End the run."""
        self._sender.close()
        if self._monitor is not None:
            self._monitor.finish()
        try:
            self.client.set_terminated(self.run_id, status)
        except Exception as failure:
            warn(failure)


def end_status(error: type[BaseException] | None) -> str:
    """Return MLflow's word for how a run ended: a failure is FAILED, an interruption KILLED."""
    if error is None:
        return "FINISHED"
    return "FAILED" if issubclass(error, Exception) else "KILLED"


def mark_dead_runs(client: MlflowClient, experiment: str) -> None:
    """Mark runs as KILLED that still say RUNNING though their process on this machine is gone."""
    import psutil

    query = f"attributes.status = 'RUNNING' and tags.`convatlas.host` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], query, max_results=1000):
        pid = int(run.data.tags.get("convatlas.process", "0"))
        if pid != os.getpid() and not psutil.pid_exists(pid):
            client.set_terminated(run.info.run_id, "KILLED")


def _process_tags() -> dict[str, str]:
    return {"convatlas.host": socket.gethostname(), "convatlas.process": str(os.getpid())}


def _set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def _log_params(client: MlflowClient, run_id: str, config: RunConfig, **more: object) -> None:
    from mlflow.entities import Param

    hidden = {"about", "output_dir", "work_dir", "overwrite", "seeds"}
    values = {k: v for k, v in config.plain().items() if k not in hidden}
    params = [Param(k, str(v)[:LONGEST_VALUE]) for k, v in {**flat(values), **more}.items()]
    for start in range(0, len(params), 100):  # MLflow's limit a request
        client.log_batch(run_id, params=params[start : start + 100])


def _log_costs(client: MlflowClient, run_id: str, folder: Path) -> None:
    """Log what the net costs as parameters: they do not change over a training, and would be charts of one point."""
    from mlflow.entities import Param

    costs = read_json(folder / "metrics.json", "train again.")["costs"]
    client.log_batch(run_id, params=[Param(f"cost.{k}", str(v)) for k, v in costs.items()])


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), 1000):  # MLflow's limit a request
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _metrics(values: Mapping[str, float], step: int, timestamp: int) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, float(value), timestamp, step) for key, value in values.items()]


def _mean_and_spread(rows: list[dict[str, float]], step: int, timestamp: int, *, spread: bool) -> list[Metric]:
    values: dict[str, float] = {}
    for key in rows[0]:
        column = [row[key] for row in rows if key in row]
        values[key] = statistics.fmean(column)
        group, slash, name = key.rpartition("/")
        if spread and len(column) > 1 and slash:
            values[f"{group}_std/{name}"] = statistics.stdev(column)  # a section of its own in the charts
    return _metrics(values, step, timestamp)


def _final_metrics(folder: Path) -> dict[str, float]:
    """Return a finished seed's metrics that have no epochs, under the names MLflow groups by."""
    metrics = read_json(folder / "metrics.json", "train again.")
    timing = read_json(folder / "timing.json", "train again.")
    return {
        **{f"test/{k}": v for k, v in metrics["test"].items()},
        **{f"test_{part}/{k}": v for part, values in metrics["parts"].items() for k, v in values.items()},
        "time/train_seconds": timing["train_seconds"],
        "time/latency_seconds": timing["latency_seconds"],
        "best_epoch": float(metrics["best_epoch"]),
        f"{metrics['monitor']}_best": metrics["best"][metrics["monitor"]],
    }


def _read_history(path: Path) -> list[dict[str, float]]:
    import csv

    with path.open() as file:
        rows = [
            {k: float(v) for k, v in row.items() if k not in ("epoch", "step") and v} for row in csv.DictReader(file)
        ]
    return [{k: v for k, v in row.items() if math.isfinite(v)} for row in rows]


def _now() -> int:
    return int(time.time() * 1000)


def warn(failure: Exception) -> None:
    """Say that the store did not take something, which the training does not wait for."""
    line = (str(failure).strip() or type(failure).__name__).splitlines()[0]
    print(f"MLflow did not take this: {line} The run's own files are complete.", file=sys.stderr, flush=True)
