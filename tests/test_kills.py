"""Trainings that are killed again and again, at moments that are drawn, end as if nothing had been.

A chain is one training: it is started, killed and started again, until it is through. It is killed while it starts,
while MLflow's database is made, within epochs, while results are written and while the log is closed; sometimes its
project has moved before it is started again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

from convatlas.tracking.store import connect
from forking import Forks
from helpers import ROOT, mlflow_record

OPTIONS = (
    *("model=lenet5_modern", "recipe.epochs=4", "recipe.batch_size=128", "trainer.threads=1", "study=kills"),
    *("variant=v", "output_dir=run", "trainer.checkpoint_every_n_steps=2", "recipe.monitor=val/calibration_error"),
    *("trainer.limit_batches=5", "trainer.workers=0"),
    *("tracking.system_metrics=false", "tracking.log_model=false"),
)
MOMENTS = ("start", "store", "epochs", "results", "end")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_OF_A_CHAIN = 12
"""After so many a training may come to its end."""


@dataclass
class Project:
    """A project in which one training runs.

    Attributes:
        folder: where it lies now.
        options: of the training.
        forks: what starts processes.
        store: an empty database of MLflow to begin with; None lets the training make one, which takes seconds.
        seconds: that its processes have taken, all together.
    """

    folder: Path
    options: tuple[str, ...]
    forks: Forks
    store: Path | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the folder."""
        self.folder.mkdir()
        if self.store is not None:
            shutil.copyfile(self.store, self.folder / "mlflow.db")
        (self.folder / "conf").symlink_to(ROOT / "conf")

    @property
    def seeds(self) -> list[Path]:
        """The folders of the results."""
        return sorted(self.folder.glob("run/seed=*"))

    @property
    def store_address(self) -> str:
        """The address of its MLflow."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def start(self) -> int:
        """Start the training."""
        return self.forks.start("convatlas.train", self.options, self.folder, self.folder / "log.txt")

    def run(self) -> None:
        """Run the training to its end."""
        started = time.monotonic()
        self.start()
        status = self.forks.status()
        self.seconds += time.monotonic() - started
        assert status == 0, self.log

    def kill(self, draw: random.Random, moments: Sequence[str] = MOMENTS, signals: Sequence[int] = SIGNALS) -> bool:
        """Start the training and kill it at some moment; returns whether it was killed before it was through."""
        made = (self.folder / "mlflow.db").exists()
        moment = draw.choice([moment for moment in moments if moment != "store" or not made])
        waiting, wanted = draw.random(), draw.choice(signals)
        started = time.monotonic()
        process = self.start()
        if moment == "start":
            time.sleep(waiting)
        else:
            marks = self.marks(moment)
            while self.marks(moment) == marks and is_running(process):
                time.sleep(0.001)
            time.sleep(waiting * {"store": 0.5, "epochs": 0.3, "results": 0.03, "end": 0.2}[moment])
        if is_running(process):
            os.kill(process, wanted)
        status = self.forks.status()
        self.seconds += time.monotonic() - started
        assert status in (0, -wanted, 128 + wanted), f"{moment}, {wanted.name}: {status}\n{self.log}"
        return status != 0

    def marks(self, moment: str) -> set[tuple[str, int]]:
        """Return files whose coming tells that the moment is there."""
        patterns = {
            "store": ".mlflow.db.*.partial",
            "epochs": "run/.work/seed=*/last.ckpt",
            "results": "run/.seed=*.partial/*",
            "end": "run/seed=*",
        }
        found = set()
        for path in self.folder.glob(patterns[moment]):
            try:
                found.add((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return found

    def move(self, to: Path) -> None:
        """Move the project."""
        self.folder.rename(to)
        self.folder = to

    @property
    def log(self) -> str:
        """What the processes printed."""
        return (self.folder / "log.txt").read_text()[-6000:]


def is_running(process: int) -> bool:
    """Say whether a fork has not ended; one that has ended is a zombie until it is asked for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Import everything once."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Train once without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = (*OPTIONS, f"data.prepared={prepared_digits}")
    connect(f"sqlite:///{folder / 'empty.db'}")
    project = Project(folder / "project", options, forks, folder / "empty.db")
    project.run()
    return project


def train_with_kills(project: Project, draw: random.Random, most: int) -> int:
    """Start and kill a training until it is through; returns how often it was killed."""
    kills = 0
    while kills < most and project.kill(draw):
        kills += 1
        print(f"kill {kills} of this chain, after {project.seconds:.1f} s")
        if draw.random() < 0.3:
            project.move(project.folder.with_name(f"moved {kills}"))
    project.run()  # a second time where it is through: what was left undone at its end is done now
    return kills


def assert_same(project: Project, undisturbed: Project) -> None:
    """Check that a chain has the results of the undisturbed training."""
    assert sorted((project.folder / "run").iterdir()) == project.seeds, "nothing is left over"
    assert not [path.name for path in project.folder.iterdir() if "partial" in path.name]
    assert [seed.name for seed in project.seeds] == [seed.name for seed in undisturbed.seeds]
    for one, other in zip(project.seeds, undisturbed.seeds, strict=True):
        assert_same_seed(one, other, project.seconds)
    assert mlflow_record(project.store_address) == mlflow_record(undisturbed.store_address)


def assert_same_seed(one: Path, other: Path, seconds: float) -> None:
    """Check that the folders of two seeds hold the same."""
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(other) for path in other.rglob("*")
    )
    for name in ("metrics.json", "history.csv", "identity.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("best.ckpt", "last.ckpt"):
        weights, expected = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        assert weights["epoch"] == expected["epoch"]
        assert weights["state_dict"].keys() == expected["state_dict"].keys()
        assert all(torch.equal(tensor, expected["state_dict"][key]) for key, tensor in weights["state_dict"].items())
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "predictions.parquet") for folder in (one, other)))
    timing = json.loads((one / "timing.json").read_text())
    assert len(timing["epoch_seconds"]) == json.loads((one / "metrics.json").read_text())["epochs"]
    assert 0 < timing["train_seconds"] <= seconds


def try_chains(kills: int, seed: int, undisturbed: Project, folder: Path, options: tuple[str, ...] = ()) -> None:
    """Kill so many times, in as many chains as it takes; `options` come after those of the undisturbed training."""
    draw = random.Random(seed)
    done = chain = 0
    while done < kills:
        chain += 1
        place = folder / f"chain {chain}"
        place.mkdir()
        store = undisturbed.store if chain % 3 else None
        project = Project(place / "project", (*undisturbed.options, *options), undisturbed.forks, store)
        done += train_with_kills(project, draw, min(KILLS_OF_A_CHAIN, kills - done))
        try:
            assert_same(project, undisturbed)
        except AssertionError as error:
            error.add_note(f"seed {seed}, chain {chain}, after {done} kills\n{project.log}")
            raise
        shutil.rmtree(place)


def test_a_training_that_is_killed_ends_as_if_nothing_had_been(undisturbed, tmp_path):
    try_chains(10, 20261130, undisturbed, tmp_path)


@pytest.mark.slow
def test_a_hundred_kills(undisturbed, tmp_path):
    kills, seed = (int(os.environ.get(name, default)) for name, default in (("KILLS", "100"), ("KILLS_SEED", "1")))
    try_chains(kills, seed, undisturbed, tmp_path)


SIDE_BY_SIDE = ("trainer.seeds_at_once=2",)


@pytest.fixture(scope="module")
def one_after_the_other(forks: Forks, prepared_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Train two seeds, one after the other, without a kill."""
    small = (*OPTIONS, "recipe.epochs=2", "trainer.limit_batches=4", f"data.prepared={prepared_digits}")
    options = (*small, "seeds=[0,1]", "trainer.seeds_at_once=1")
    project = Project(tmp_path_factory.mktemp("one_after_the_other") / "project", options, forks)
    project.run()
    return project


@pytest.mark.parametrize(
    "wanted",
    [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGINT))],
)
def test_seeds_killed_side_by_side_end_as_if_trained_one_after_the_other(forks, one_after_the_other, tmp_path, wanted):
    project = Project(tmp_path / "project", (*one_after_the_other.options, *SIDE_BY_SIDE), forks)
    assert project.kill(random.Random(0), ("epochs",), (wanted,))
    assert "Traceback" not in project.log
    assert wanted == signal.SIGKILL or ("goes on from the last checkpoint" in project.log) == (wanted == signal.SIGINT)
    project.run()
    assert_same(project, one_after_the_other)


@pytest.mark.slow
def test_many_kills_of_seeds_side_by_side(one_after_the_other, tmp_path):
    kills, seed = (int(os.environ.get(name, default)) for name, default in (("KILLS", "60"), ("KILLS_SEED", "1")))
    try_chains(kills, seed, one_after_the_other, tmp_path, SIDE_BY_SIDE)
