"""A search for hyper-parameters: what it may look at, how it goes on, what it leaves, what it refuses."""

from __future__ import annotations

import csv
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient

from convatlas.core.errors import UserError
from convatlas.tasks.base import Task
from convatlas.training import tuning
from convatlas.training.tuning import read_search, search
from convatlas.training.work_folder import WorkFolder
from helpers import ROOT, assert_one_sentence

SMALL = (
    *("model=lenet5_modern", "trainer.threads=1", "recipe.epochs=3", "recipe.batch_size=128"),
    *("trainer.limit_batches=3", "tune.startup_trials=2"),
)


@pytest.fixture
def asked(prepared_digits: Path, tmp_path: Path):
    """Return the overrides of a small search that tracks nothing."""

    def asked(*more: str, folder: str = "search") -> list[str]:
        options = [*SMALL, f"data.prepared={prepared_digits}", f"output_dir={tmp_path / folder}", "tracking=none"]
        given = {override.partition("=")[0] for override in more}
        return [*(option for option in options if option.partition("=")[0] not in given), *more]

    return asked


def trials(folder: Path) -> list[dict[str, str]]:
    """Read the table of trials."""
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


RATE = "recipe.optimizer.lr=tag(log,interval(1e-4,0.5))"


def test_the_best_trial_is_that_of_the_highest_validation_score_and_the_test_split_is_not_read(
    asked, tmp_path, monkeypatch
):
    def forbidden(*_):
        raise AssertionError("the test split was looked at")

    monkeypatch.setattr(Task, "test_step", forbidden)
    monkeypatch.setattr("convatlas.data.module.DataModule.test_dataloader", forbidden)
    options = asked(RATE, "recipe/schedule=choice(constant,cosine)", "tune.trials=3")
    command = search(read_search(options))
    table = trials(tmp_path / "search")
    finished = [row for row in table if row["state"] == "complete"]
    assert len(table) == 3
    assert all(1e-4 <= float(row["recipe.optimizer.lr"]) <= 0.5 for row in table)
    best = max(finished, key=lambda row: float(row["score"]))
    written = yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())
    assert written["trial"] == int(best["trial"])
    assert f"recipe.optimizer.lr={best['recipe.optimizer.lr']}" in command
    assert f"recipe/schedule={best['recipe/schedule']}" in command
    assert "tune." not in command
    written = {".convatlas.json", "best.yaml", "trials.csv", "tune.db"}
    assert {path.name for path in (tmp_path / "search").iterdir()} == written


def test_a_search_that_was_interrupted_goes_on_to_the_same_trials(asked, tmp_path, monkeypatch):
    """In the middle of a training, whose epochs before are not trained again."""
    few = (RATE, "tune.trials=3", "recipe.epochs=2")
    search(read_search(asked(*few, folder="undisturbed")))
    step = Task.training_step
    steps = 0

    def interrupted(self, batch, batch_idx):
        nonlocal steps
        steps += 1
        if steps == 6 + 5:  # of the second trial in the second epoch
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search(read_search(asked(*few)))
    assert steps == 6 + 5
    search(read_search(asked(*few)))
    assert steps == 6 + 5 + 3 + 6  # the second epoch of the second trial again, and the third trial
    assert trials(tmp_path / "search") == trials(tmp_path / "undisturbed")


class Killed(BaseException):
    """Ends the search without any of the orderly ends."""


KILLS = {"before the trial is stored": (optuna.Study, "add_trial"), "before its folder goes": (WorkFolder, "remove")}
KILLS |= {"before its lock goes": (WorkFolder, "close"), "before the best is written": (tuning, "_write_best")}


@pytest.mark.parametrize("kill", KILLS)
def test_a_search_that_is_killed_at_the_end_of_a_trial_leaves_nothing_in_the_end(asked, tmp_path, monkeypatch, kill):
    def killed(*_):
        raise Killed

    options = asked(RATE, "tune.trials=2", "recipe.epochs=1")
    with monkeypatch.context() as patched:
        patched.setattr(*KILLS[kill], killed)
        with pytest.raises(Killed):
            search(read_search(options))
    search(read_search(options))
    assert [row["trial"] for row in trials(tmp_path / "search")] == ["0", "1"]
    left = {path.name for path in (tmp_path / "search").iterdir()}
    assert left == {".convatlas.json", "best.yaml", "trials.csv", "tune.db"}


def test_a_trial_below_the_median_is_pruned(asked, tmp_path, monkeypatch):
    """Trials with a rate of almost nothing learn nothing."""
    epochs: list[int] = []
    fit = tuning.fit

    def counted(*arguments):
        fitted = None
        try:
            fitted = fit(*arguments)
        finally:
            epochs.append(len(fitted.recorder.rows) if fitted else 0)
        return fitted

    monkeypatch.setattr(tuning, "fit", counted)
    options = asked("recipe.optimizer.lr=choice(1e-9,0.1)", "tune.trials=8", "recipe/schedule=constant")
    search(read_search(options))
    pruned = [row for row in trials(tmp_path / "search") if row["state"] == "pruned"]
    assert pruned
    assert {row["recipe.optimizer.lr"] for row in pruned} == {"1e-09"}
    assert all(row["score"] == "" for row in pruned)
    assert epochs.count(0) == len(pruned)


def test_in_mlflow_every_trial_is_a_child_of_the_search(asked, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = ("tracking=mlflow", f"tracking.uri={uri}", "tracking.system_metrics=false", "tracking.log_model=false")
    search(read_search(asked(RATE, "tune.trials=2", "recipe.epochs=1", *tracked)))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tune").experiment_id])
    (parent,) = [run for run in runs if run.data.tags["convatlas.role"] == "variant"]
    children = [run for run in runs if run.data.tags["convatlas.role"] == "seed"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({run.data.params["recipe.optimizer.lr"] for run in children}) == 2
    assert all("val/accuracy" in run.data.metrics for run in children)
    assert not [name for run in runs for name in run.data.metrics if name.startswith("test")]
    best = max(run.data.metrics["val/accuracy"] for run in children)
    assert parent.data.metrics["search/best_score"] == pytest.approx(best)


REFUSED = {
    "nothing": ((), "There is nothing to search: write a range as key=interval"),
    "a bracket": (
        ("recipe.optimizer.lr=interval(1",),
        r"recipe.optimizer.lr=interval\(1 cannot be read: write a range",
    ),
    "turned round": (("recipe.optimizer.lr=interval(1,0.1)",), "the first number must be below the second"),
    "log of nothing": (("recipe.optimizer.lr=tag(log,interval(0,1))",), "above 0 for log"),
    "a glob": (("model=glob(*)",), "cannot be searched"),
    "its seed": (("seed=range(0,3)",), "seed cannot be searched"),
    "two seeds": ((RATE, "seeds=[0,1]"), "give one seed"),
    "its options": ((RATE, "tune.trials=0"), "tune.*trials"),
    "two processes": ((RATE, "trainer=ddp"), "trains in one process"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_searched_is_told_in_a_sentence_that_shows_how(asked, case, tmp_path):
    options, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        read_search(asked(*options))
    assert not (tmp_path / "search").exists()


def test_an_unknown_key_is_told_with_the_near_ones(enter, asked, tmp_path):
    entered = enter("tune", *asked("recipe.optimizer.lrr=interval(0.1,1)"))
    assert_one_sentence(entered, "recipe.optimizer.lrr", "Did you mean recipe.optimizer.lr")
    assert not (tmp_path / "search").exists()


def test_a_loss_that_is_monitored_is_minimised(asked, tmp_path):
    """A rate of almost nothing keeps the loss of the first weights; the other rate lowers it."""
    rates = "recipe.optimizer.lr=choice(1e-9,0.1)"
    search(read_search(asked(rates, "recipe.monitor=val/loss", "tune.trials=4", "tune.prune=false", "tune.seed=1")))
    scores = {row["recipe.optimizer.lr"]: float(row["score"]) for row in trials(tmp_path / "search")}
    best = yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())
    assert scores["0.1"] < scores["1e-09"]
    assert best["validation_score"] == scores["0.1"]
    assert "recipe.optimizer.lr=0.1" in best["overrides"]


def test_a_damaged_storage_is_one_sentence_and_is_kept(asked, tmp_path):
    damaged = tmp_path / "search" / "tune.db"
    damaged.parent.mkdir()
    damaged.write_text("not a database " * 100)
    with pytest.raises(UserError, match=r"tune\.db, which tune did not write"):
        search(read_search(asked(RATE, "tune.trials=1")))
    assert damaged.read_text() == "not a database " * 100


def test_another_search_in_the_same_folder_is_refused(asked):
    few = ("tune.trials=1", "recipe.epochs=1")
    search(read_search(asked(RATE, *few)))
    with pytest.raises(UserError, match=r"holds another search \(space changed.*overwrite=true"):
        search(read_search(asked("recipe.optimizer.lr=interval(0.01,0.1)", *few)))


@pytest.mark.slow
def test_a_search_killed_outright_goes_on_to_the_same_trials(asked, tmp_path):
    command = [sys.executable, "-m", "convatlas.tune"]
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    search(read_search(asked(RATE, "tune.trials=4", folder="undisturbed")))
    process = subprocess.Popen([*command, *asked(RATE, "tune.trials=4")], cwd=tmp_path, stdout=subprocess.DEVNULL)
    database = tmp_path / "search" / "tune.db"
    while process.poll() is None and trials_in(database) < 2:
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    subprocess.run([*command, *asked(RATE, "tune.trials=4")], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert trials(tmp_path / "search") == trials(tmp_path / "undisturbed")


def trials_in(database: Path) -> int:
    """Count the trials of a storage that may be about to be made."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return connection.execute("select count(*) from trials").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
