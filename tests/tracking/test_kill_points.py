"""A kill at any write to MLflow, and another at any write of the next start, end in the record of no kill."""

from __future__ import annotations

import os
import random
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from convatlas.core.config import RunConfig
from convatlas.core.record import RunRecord
from convatlas.tracking.store import connect
from convatlas.tracking.tracker import MlflowVariantTracker
from convatlas.training.run import train
from helpers import mlflow_record

WRITES = (
    *("create_run", "log_batch", "set_terminated", "update_run", "set_tag", "delete_run", "log_artifact"),
    *("log_text", "log_inputs"),
)
TRACKED = ("tracking=mlflow", "tracking.log_model=false", "tracking.system_metrics=false")
NEVER = 10**6


@dataclass
class Tracked:
    """A finished seed, and an MLflow to which it is logged as if it were trained in this moment.

    Attributes:
        config: of the training.
        empty: a database without runs.
        expected: the record after no kill.
    """

    config: RunConfig
    empty: Path
    expected: dict[tuple[str, str], list[dict[str, Any]]]

    @property
    def database(self) -> Path:
        """The database of MLflow."""
        return Path(str(self.config.tracking.uri).removeprefix("sqlite:///"))

    @property
    def work(self) -> Path:
        """Where the training would work."""
        return self.config.output_dir / ".work" / "seed=0"

    def begin(self) -> None:
        """Begin with an empty database."""
        shutil.copy(self.empty, self.database)
        shutil.rmtree(self.database.with_name("mlartifacts"), ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def log(self) -> None:
        """Log as a training does."""
        folder = self.config.output_dir / "seed=0"
        record = RunRecord.read(folder)
        self.work.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "identity.json", self.work)
        with MlflowVariantTracker(self.config, record.metrics.data_fingerprint or "", None).opened() as variant:
            seed = variant.start_seed(0, self.work)
            for row in record.history:
                seed.log_epoch(row)
            seed.log_results(folder)
            seed.end("FINISHED")

    def start(self, kill_at: int = NEVER) -> bool:
        """Log in a process of its own, killed before its `kill_at`-th write; returns whether it was."""
        process = os.fork()
        if process == 0:
            try:
                self._count_down(kill_at)
                self.log()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status in (0, 9)
        return status == 9

    def _count_down(self, left: int) -> None:
        def counted(write: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **named: object) -> object:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return write(*arguments, **named)

            return call

        for name in WRITES:
            setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))

    def check(self, *kills: int) -> bool:
        """Check the record after kills at these writes, one a start; returns whether the last start came to its."""
        self.begin()
        killed = [self.start(at) for at in kills][-1]
        self.start()
        assert mlflow_record(str(self.config.tracking.uri)) == self.expected, f"kills at {kills}"
        return killed


@pytest.fixture
def tracked(compose, tmp_path):
    """Train one seed without tracking, and log it without a kill."""
    empty = tmp_path / "empty.db"
    connect(f"sqlite:///{empty}")
    options = (*TRACKED, f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", "recipe.epochs=2")
    train(compose(*options, "tracking.enabled=false", "trainer.limit_batches=3"), strict=True)
    tracked = Tracked(compose(*options, "trainer.limit_batches=3"), empty, {})
    tracked.begin()
    tracked.start()
    tracked.expected = mlflow_record(str(tracked.config.tracking.uri))
    return tracked


def test_a_kill_at_the_first_writes(tracked):
    assert [run["status"] for runs in tracked.expected.values() for run in runs] == ["FINISHED", "FINISHED"]
    for at in range(4):  # the variant's run is made, its parameters are logged in two requests
        assert tracked.check(at)


@pytest.mark.slow
def test_a_kill_at_any_write(tracked):
    at = 0
    while tracked.check(at):
        at += 1
    assert at > 20
    draw = random.Random(1)
    for _ in range(60):
        tracked.check(draw.randrange(at), draw.randrange(at + 5))
