"""Trainings against MLflow's server: four at once with PostgreSQL behind it, and one whose server is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from mlflow import MlflowClient
from servers import mlflow_server, postgres, postgres_programs, postgres_user, stop

from convatlas.core.files import write_yaml

TRACKED = ("tracking=mlflow", "tracking.log_model=false", "tracking.system_metrics=false")

without_postgres = pytest.mark.skipif(
    postgres_programs() is None or postgres_user() is None or importlib.util.find_spec("psycopg2") is None,
    reason="needs PostgreSQL's programs, an account to run them, and psycopg2 (the extra `server`)",
)


def start(config, folder, number: int) -> subprocess.Popen[str]:
    """Start a training in a process of its own."""
    write_yaml(folder / "plan" / "study" / f"{number}.yaml", {"config": config.plain()})
    command = [sys.executable, "-m", "convatlas.train", "--from-plan", f"study/{number}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@without_postgres
def test_four_trainings_at_once_through_a_server_on_postgresql(compose, tmp_path):
    """Every seed has every epoch and the very figures of its files; the variant has one run."""
    with postgres() as database, mlflow_server(database, tmp_path / "server") as (address, _):
        options = (*TRACKED, f"tracking.uri={address}", "recipe.epochs=5")
        configs = [compose(*options, folder=f"run{number}", seeds=[number]) for number in range(4)]
        processes = [start(config, tmp_path / "project", number) for number, config in enumerate(configs)]
        errors = [process.communicate(timeout=900)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 4, errors
        assert not any("MLflow did not take" in error for error in errors), errors
        client = MlflowClient(address)
        runs = client.search_runs([client.get_experiment_by_name("adhoc").experiment_id])
        seeds = [run for run in runs if run.data.tags["convatlas.role"] == "seed"]
        assert sorted(run.data.params["seed"] for run in seeds) == ["0", "1", "2", "3"]
        assert {run.info.status for run in seeds} == {"FINISHED"}
        for run in seeds:
            seed = run.data.params["seed"]
            history = pd.read_csv(tmp_path / f"run{seed}" / f"seed={seed}" / "history.csv")
            logged = client.get_metric_history(run.info.run_id, "train/loss")
            assert [(m.step, m.value) for m in logged] == list(
                zip(history["epoch"], history["train/loss"], strict=True)
            )
            assert {"config.yaml", "metrics.json"} <= {a.path for a in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_training_goes_on_when_its_server_is_killed_and_says_what_it_could_not_send(compose, tmp_path):
    with mlflow_server(f"sqlite:///{tmp_path / 'server.db'}", tmp_path / "server") as (address, server):
        options = (*TRACKED, f"tracking.uri={address}", "recipe.epochs=6")
        config = compose(*options, seeds=[0, 1])
        training = start(config, tmp_path / "project", 0)
        work = config.output_dir / ".work" / "seed=0" / "last.ckpt"
        while training.poll() is None and not work.exists():
            time.sleep(0.01)
        stop(server)
        assert training.poll() is None, "it ended before its server was killed"
        output, errors = training.communicate(timeout=400)
    assert training.returncode == 0, output + errors
    assert "MLflow did not take this" in errors
    assert "The run's own files are complete" in errors
    assert "Traceback" not in errors
    for seed in (0, 1):
        folder = config.output_dir / f"seed={seed}"
        assert len(pd.read_csv(folder / "history.csv")) == 6
        assert json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] > 0.1


@pytest.mark.slow
def test_metrics_that_a_killed_process_had_not_sent_are_sent_by_the_one_that_resumes(compose, tmp_path, monkeypatch):
    from convatlas.tasks.classification import ClassificationTask
    from convatlas.tracking.sender import Sender
    from convatlas.training.run import train

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = compose(*TRACKED, f"tracking.uri={uri}", "recipe.epochs=3")
    losses, put = ClassificationTask.losses, Sender.put

    def killed_in_the_third_epoch(self, batch):
        if self.current_epoch == 2:
            raise SystemExit
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", killed_in_the_third_epoch)
    monkeypatch.setattr(Sender, "put", lambda *_: None)
    with pytest.raises(SystemExit):
        train(config, strict=True)
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    monkeypatch.setattr(Sender, "put", put)
    train(config, strict=True)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("adhoc").experiment_id])
    (seed,) = [run for run in runs if run.data.tags["convatlas.role"] == "seed"]
    assert sorted(m.step for m in client.get_metric_history(seed.info.run_id, "val/loss")) == [1, 2, 3]
