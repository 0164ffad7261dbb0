"""Trackers: of a variant (the parent run) and of a seed (its child), and two that do nothing where tracking is off.

A seed's run is known by the seed's identity. Whatever it lacks, after a kill or an outage, is completed from the
seed's files by the next start of the training or by `python -m convatlas.track`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convatlas.core.config import RunConfig, TrackingConfig
from convatlas.core.digests import digest
from convatlas.core.environment import git_state
from convatlas.core.errors import UserError
from convatlas.core.files import read_json
from convatlas.core.processes import rank
from convatlas.core.record import Environment, RunRecord
from convatlas.tracking.records import best_seed, chosen_settings, final_metrics, mean_and_std, row_of, settings_of
from convatlas.tracking.runs import IDENTITY, Experiment, Run, end_status, metrics_of, warn
from convatlas.tracking.sender import Sender
from convatlas.tracking.store import store_lock
from convatlas.tracking.view import write_view

if TYPE_CHECKING:
    from mlflow.entities import Run as Found

    from convatlas.data.card import Card

PARENT = "mlflow.parentRunId"
MODEL = "convatlas.model_uri"
ONCE = 0  # the step of what is measured once: MLflow draws a bar a run of it, and curves of the others


def open_tracker(config: RunConfig, card: Card, *, strict: bool = True) -> VariantTracker:
    """Return the tracker of a variant: MLflow's on rank zero, and elsewhere one that does nothing.

    Args:
        config: the run.
        card: of its data.
        strict: raise where the store cannot be used. In the pipeline the training goes on without it instead.

    Raises:
        UserError: the store cannot be used.
    """
    if rank() > 0 or not config.tracking.enabled:
        return VariantTracker()
    try:
        return MlflowVariantTracker(config, card.fingerprint, card).opened()
    except UserError as error:
        if strict:
            raise
        warn(error, send_again(config.output_dir))
        return VariantTracker()


def check_registration(tracking: TrackingConfig) -> None:
    """Check the names under which a model is to be registered, by MLflow's rules, before anything is trained.

    Raises:
        UserError: MLflow would refuse one, or it names nothing.
    """
    name, alias = tracking.register_as, tracking.alias
    if name is not None and not re.fullmatch(r"[^/:]*[^/:\s][^/:]*", name):
        raise UserError(f"tracking.register_as={name!r} is no name of a model; leave out / and :, or set it to null.")
    if alias is not None and not re.fullmatch(r"(?!(?i:latest|v\d+)$)[\w-]+", alias):
        raise UserError(f"tracking.alias={alias!r} is no alias; take letters, digits, _ and -, but not latest or v1.")
    if alias is not None and name is None:
        raise UserError(f"tracking.alias={alias} does nothing without a registered model; set tracking.register_as.")


def send_again(folder: Path) -> str:
    """Return how finished runs get into MLflow later."""
    return f"`python -m convatlas.track {folder}` sends it once it is finished."


class SeedTracker:
    """Tracks nothing; the interface of a seed's tracker."""

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log the metrics of one epoch."""

    def log_results(self, folder: Path) -> None:
        """Log the record and the files of a finished seed."""

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

    def complete(self, folder: Path) -> None:
        """Log what is missing of a seed that was finished before, in `folder`."""


class MlflowVariantTracker(VariantTracker):
    """The parent run of a variant.

    Args:
        config: the run.
        fingerprint: of the data it was trained on.
        card: of the same data, without which no model can be logged.
        code: commit and state of the code that trained; None takes those of the code that runs.

    Raises:
        UserError: the store cannot be used.
    """

    def __init__(self, config: RunConfig, fingerprint: str, card: Card | None, code: Environment | None = None) -> None:
        self.config = config
        self.code = code or Environment.model_validate(git_state())
        self.card = card
        self.fingerprint = fingerprint
        self.variant = digest([config.identity, fingerprint])
        self.experiment = Experiment(config.tracking.uri, config.study)
        self.client = self.experiment.client
        self.run: Run

    @property
    def run_id(self) -> str:
        """The id of the variant's run."""
        return self.run.id

    def opened(self) -> Self:
        """Find the variant's run or make it; a store that does not even take its configuration is found here.

        Raises:
            UserError: the store cannot be written.
        """
        with self.experiment.explained():
            with store_lock(self.experiment.uri):
                self.run = self._oldest_run() or self._new_run()
            oldest = self._oldest_run()
            if (
                oldest is not None and oldest.id != self.run.id
            ):  # on a server no lock keeps two processes from making one
                self.client.delete_run(self.run.id)
                self.run = oldest
            try:
                self.client.update_run(self.run.id, status="RUNNING")
                self._describe_variant()
            except BaseException:
                self.run.end("FAILED")
                raise
        return self

    def _describe_variant(self) -> None:
        """Log what is trained; of a run that a killed process made, what it could not log any more."""
        self.run.log_params(self._params())
        self.client.log_text(self.run.id, json.dumps(self.config.plain(), indent=2), "config.json")

    def _runs(self) -> list[Found]:
        """Return the runs of this variant, the oldest first."""
        query = f"tags.`convatlas.variant` = '{self.variant}' and tags.`convatlas.role` = 'variant'"
        return sorted(self.experiment.search(query), key=lambda run: (run.info.start_time, run.info.run_id))

    def _oldest_run(self) -> Run | None:
        return next((Run(self.experiment, found.info.run_id) for found in self._runs()), None)

    def _new_run(self) -> Run:
        return self.experiment.start(self.config.variant, {"convatlas.role": "variant", **self._tags(self.code)})

    def _tags(self, code: Environment) -> dict[str, str]:
        """Return the tags of a variant and its seeds: which plan, which data, which code."""
        commit = {"mlflow.source.git.commit": code.commit} if code.commit else {}
        return {
            "convatlas.study": self.config.study,
            "convatlas.variant": self.variant,
            "convatlas.data": self.fingerprint,
            "convatlas.model": str(self.config.about.title),
            "convatlas.dirty": str(code.dirty).lower(),
            "mlflow.source.name": "convatlas.train",
            **commit,
        }

    def _params(self) -> dict[str, Any]:
        """Return the settings that users compare runs by; `config.json` beside them has all."""
        return chosen_settings(self.config.plain())

    # ---- seeds ------------------------------------------------------------------------------------------------------

    def start_seed(self, seed: int, work: Path) -> SeedTracker:
        """Start a child run, or go on with the one that a killed process left.

        A store that has gone since the first seed costs the record of this one, not its training.
        """
        try:
            return MlflowSeedTracker(self, seed, work)
        except Exception as failure:
            warn(failure, send_again(self.config.output_dir))
            return SeedTracker()

    def new_seed(self, seed: int, identity: str, code: Environment) -> Run:
        """Start the run of a seed."""
        tags = {"convatlas.role": "seed", PARENT: self.run.id, IDENTITY: identity, **self._tags(code)}
        return self.experiment.start(f"{self.config.variant} seed {seed}", tags)

    def describe(self, run: Run, seed: int) -> None:
        """Log how a seed is trained, and on what, unless that is there."""
        run.log_params({**self._params(), "seed": seed})
        self.log_data(run)

    def log_data(self, run: Run) -> None:
        """Log on which data a run is trained, unless that is there."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        if run.found.inputs is not None and run.found.inputs.dataset_inputs:
            return
        dataset = Dataset(
            name=self.config.data.name,
            digest=self.fingerprint[:36],  # MLflow's limit
            source_type="local",
            source=json.dumps({"uri": self.config.data.prepared.as_posix()}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        try:
            self.client.log_inputs(run.id, inputs)
        except MlflowException:  # another process entered the same data in this moment; it is there now
            self.client.log_inputs(run.id, inputs)

    def complete(self, folder: Path) -> None:
        """Log what the store lacks of a seed that was finished before."""
        try:
            self.send(folder)
        except Exception as failure:
            warn(failure, send_again(folder))

    def send(self, folder: Path) -> bool:
        """Log what the store lacks of a finished seed; returns whether it lacked something.

        Raises:
            UserError: the record cannot be read, or the store does not answer.
        """
        record = RunRecord.read(folder)
        with self.experiment.explained("did not take this"):
            found = self._run_of(record)
            if found is not None and found.info.status == "FINISHED" and "best_epoch" in found.data.metrics:
                return False
            seed = record.metrics.seed
            if found is None:
                run = self.new_seed(seed, digest(record.identity), record.environment)
            else:
                run = Run(self.experiment, found.info.run_id)
            try:
                self.log_record(run, record, folder)
            except BaseException:
                run.end("KILLED")
                raise
            run.end("FINISHED")
        return True

    def log_record(self, run: Run, record: RunRecord, folder: Path) -> None:
        """Log of a seed's record what its run does not have; where `best_epoch` is, it has all."""
        self.describe(run, record.metrics.seed)
        run.log_files(folder)
        there = run.steps("lr")
        metrics = [
            metric
            for epoch, row in enumerate(record.history, start=1)
            if epoch not in there
            for metric in metrics_of(row_of(row), epoch)
        ]
        if "best_epoch" not in run.found.data.metrics:
            metrics += metrics_of(final_metrics(record), ONCE)
        run.log_metrics(metrics)

    def _run_of(self, record: RunRecord) -> Found | None:
        """Return the run of a finished seed; one of an earlier version says no more than its variant and seed."""
        query = f"tags.`convatlas.variant` = '{self.variant}' and tags.`convatlas.role` = 'seed'"
        identity, seed = digest(record.identity), str(record.metrics.seed)

        def is_its(run: Found) -> bool:
            tag = run.data.tags.get(IDENTITY)
            return run.data.params.get("seed") == seed if tag is None else tag == identity

        found = list(filter(is_its, self.experiment.search(query)))
        return next((run for run in found if run.info.status == "FINISHED"), next(iter(found), None))

    # ---- the end ----------------------------------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Log mean and standard deviation over the finished seeds and the best model, and end the run."""
        try:
            if kind is None:
                self.finish()
            else:
                self.run.end(end_status(kind))
        except Exception as failure:
            if kind is None and self.config.tracking.register_as:
                raise UserError(
                    f"The model was not registered as {self.config.tracking.register_as}: {failure} "
                    f"The runs are complete; `python -m convatlas.track {self.config.output_dir}` tries it again."
                ) from failure
            warn(failure, send_again(self.config.output_dir))

    def finish(self) -> None:
        """Log what is of all seeds, and end the run; it may be repeated.

        Raises:
            UserError: a record cannot be read, or the store does not answer.
        """
        with self.experiment.explained("did not take this"):
            try:
                folders = self._folders()
                if folders:
                    self._log_mean_and_std(list(folders.values()))
            except BaseException:
                self.run.end("FAILED")
                raise
            self.run.end("FINISHED")
            if folders:
                self._log_models(folders)

    def _folders(self) -> dict[Path, RunRecord]:
        """Return the finished seeds of these settings, data and code; the folder may hold older ones."""
        folders = sorted(path.parent for path in self.config.output_dir.glob("seed=*/metrics.json"))
        records = {folder: RunRecord.read(folder) for folder in folders}
        asked = [record for record in records.values() if record.metrics.seed in self.config.seeds]
        same = settings_of(asked[-1]) if asked else None
        return {folder: record for folder, record in records.items() if settings_of(record) == same}

    def _log_mean_and_std(self, records: Sequence[RunRecord]) -> None:
        content = digest([record.model_dump(mode="json", exclude={"environment"}) for record in records])
        found = self.run.found
        if found.data.tags.get("convatlas.averaged") == content:
            return
        if found.data.metrics:
            self._replace_run()  # MLflow keeps every value of a metric: a second mean would stand beside the first
        metrics = []
        for epoch in range(1, max(len(record.history) for record in records) + 1):
            rows = [row_of(record.history[epoch - 1]) for record in records if len(record.history) >= epoch]
            metrics += metrics_of(mean_and_std(rows), epoch)
        metrics += metrics_of(mean_and_std([final_metrics(record) for record in records]), ONCE)
        self.run.log_metrics(metrics)
        self.log_data(self.run)
        write_view(self.client, self.experiment.id, records[0].metrics.score)
        self.run.set_tags({"convatlas.seeds": str(len(records)), "convatlas.averaged": content})

    def _replace_run(self) -> None:
        """Let a new run stand for the variant, also in place of one that a kill left here before it was filled."""
        self.run = self._new_run()
        self._describe_variant()
        for old in self._runs():
            if old.info.run_id == self.run.id:
                continue
            for child in self.experiment.search(f"tags.`{PARENT}` = '{old.info.run_id}'"):
                self.client.set_tag(child.info.run_id, PARENT, self.run.id)
            self.client.delete_run(old.info.run_id)

    def _log_models(self, folders: Mapping[Path, RunRecord]) -> None:
        """Log the model of the best seed, or of each, and register that of the best; each is done once."""
        options = self.config.tracking
        if not (options.log_model or options.register_as):
            return
        if self.config.data.module is not None or not self.config.task["_target_"].startswith("convatlas."):
            return  # what another package does before and after the net is not known
        best = best_seed(folders)
        for folder in folders if options.log_model == "each_seed" else [best]:
            self._model_of(folder, folders[folder])
        if options.register_as:
            self._register(self._model_of(best, folders[best]), options.register_as)

    def _model_of(self, folder: Path, record: RunRecord) -> str:
        """Return the address of a seed's model, which is logged unless it is there; empty where the seed has no run."""
        from convatlas.tracking.serving import log_served_model

        found = self._run_of(record)
        if found is None:
            return ""
        if MODEL in found.data.tags:
            return str(found.data.tags[MODEL])
        if self.card is None or self.card.fingerprint != self.fingerprint:
            raise UserError(
                f"The model of {folder} cannot be logged, since {self.config.data.prepared} does not hold the data it "
                "was trained on; prepare those again."
            )
        address = log_served_model(found.info.run_id, self.config, self.card, folder, record.environment.packages)
        run = Run(self.experiment, found.info.run_id)
        run.set_tags({MODEL: address})
        run.end(found.info.status, found.info.end_time)  # the time of the model is not the time of the training
        return address

    def _register(self, address: str, name: str) -> None:
        import mlflow
        from mlflow.exceptions import MlflowException

        if not address:
            raise UserError("MLflow has no model of the best seed: its run is gone.")
        try:
            versions = list(self.client.search_model_versions(f"name = '{name}'"))
        except MlflowException:
            versions = []
        version = next((known for known in versions if known.source == address), None)
        if version is None:
            version = mlflow.register_model(address, name)
        if self.config.tracking.alias:
            self.client.set_registered_model_alias(name, self.config.tracking.alias, version.version)


class MlflowSeedTracker(SeedTracker):
    """The child run of one seed."""

    def __init__(self, variant: MlflowVariantTracker, seed: int, work: Path) -> None:
        self.variant = variant
        resumed = variant.experiment.resume(work / "mlflow_run_id")
        if resumed is None:
            identity = work / "identity.json"
            known = read_json(identity, "start the training again.") if identity.exists() else None
            identity_digest = digest(known)
            self.run = variant.experiment.left_behind(
                {PARENT: variant.run.id, IDENTITY: identity_digest}
            ) or variant.new_seed(seed, identity_digest, variant.code)
            self.run.remember(work / "mlflow_run_id")
            self._logged: set[int] = set()
        else:
            self.run = resumed
            self.run.set_tags({PARENT: variant.run.id})
            self._logged = self.run.steps("lr")
        self._monitor: Any = None
        self._remedy = send_again(variant.config.output_dir)
        self._sender = Sender(self.run.log_metrics, lambda failure: warn(failure, self._remedy))
        try:
            variant.describe(self.run, seed)
            if variant.config.tracking.system_metrics:
                self._start_system_metrics()
        except Exception as failure:  # the run goes on, and is completed at its end
            warn(failure)

    @property
    def run_id(self) -> str:
        """The id of the seed's run."""
        return self.run.id

    def _start_system_metrics(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        uri = self.variant.experiment.uri
        monitor = SystemMetricsMonitor(self.run.id, resume_logging=bool(self._logged), tracking_uri=uri)
        monitor.start()
        self._monitor = monitor

    def log_epoch(self, row: Mapping[str, float]) -> None:
        """Log an epoch in one request, without waiting for the answer."""
        epoch = int(row["epoch"])
        if epoch not in self._logged:
            self._sender.put(metrics_of(row_of(row), epoch))
            self._logged.add(epoch)

    def log_results(self, folder: Path) -> None:
        """Log the record of the finished seed and its files, and what the store did not take during the training."""
        self._sender.close()
        try:
            self.variant.log_record(self.run, RunRecord.read(folder), folder)
        except Exception as failure:
            warn(failure, send_again(folder))

    def end(self, status: str) -> None:
        """End the run."""
        self._sender.close()
        try:
            if self._monitor is not None:
                self._monitor.finish()
            self.run.end(status)
        except Exception as failure:
            warn(failure, self._remedy)
