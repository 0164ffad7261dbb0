"""What a person finds in MLflow after trainings that ended well, badly, or in between."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.data.prepared import PreparedData
from convatlas.tasks.classification import ClassificationTask
from convatlas.tracking.reports import publish_atlas, publish_reports
from convatlas.tracking.runs import Experiment
from convatlas.tracking.view import view_state
from convatlas.training.run import train
from helpers import ROOT


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Return the address of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def tracked(uri: str, *more: str) -> tuple[str, ...]:
    """Return the overrides of a run that is tracked there."""
    return ("tracking=mlflow", f"tracking.uri={uri}", "tracking.system_metrics=false", *more)


def runs_of(uri: str, role: str):
    """Return the runs of the ad-hoc experiment with a role."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("adhoc")
    return client.search_runs([experiment.experiment_id], f"tags.`convatlas.role` = '{role}'")


def test_a_variant_is_a_parent_with_mean_and_spread_and_its_seeds_are_children(compose, uri):
    folders = train(compose(*tracked(uri, "tracking.log_model=false"), seeds=[0, 1, 2]), strict=True)
    (parent,) = runs_of(uri, "variant")
    children = runs_of(uri, "seed")
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert [run.info.status for run in [parent, *children]] == ["FINISHED"] * 4
    tests = [json.loads((folder / "metrics.json").read_text())["test"]["accuracy"] for folder in folders]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(statistics.fmean(tests))
    assert parent.data.metrics["test_std/accuracy"] == pytest.approx(statistics.stdev(tests))
    history = MlflowClient(uri).get_metric_history(parent.info.run_id, "val/accuracy")
    assert [metric.step for metric in history] == [1, 2]
    costs = json.loads((folders[0] / "metrics.json").read_text())["costs"]
    assert parent.data.metrics["cost/parameters"] == costs["parameters"]
    assert not [name for name in parent.data.metrics if name.startswith("cost_std/")]
    assert parent.inputs.dataset_inputs[0].dataset.name == "digits"
    assert max(len(run.data.params) for run in [parent, *children]) <= 40


def test_the_experiment_has_a_view_of_scores_with_their_costs(compose, uri):
    train(compose(*tracked(uri, "tracking.log_model=false", "recipe.epochs=1")), strict=True)
    tags = MlflowClient(uri).get_experiment_by_name("adhoc").tags
    view = json.loads(tags["mlflow.sharedViewState.convatlas"])
    assert len(tags["mlflow.sharedViewState.convatlas"]) < 5000  # MLflow's limit
    (parent,) = runs_of(uri, "variant")
    shown = {*parent.data.metrics, "test_std/accuracy"}  # one seed has no deviation
    assert {name.split("`")[1] for name in view["selectedColumns"]} - {"Dataset"} <= shown
    axes = {chart[axis]["key"] for chart in view["compareRunCharts"] for axis in ("xaxis", "yaxis") if axis in chart}
    assert axes == {"cost/macs", "cost/parameters", "test/accuracy"}
    assert view_state(["accuracy", "map_50"])["orderByKey"] == "metrics.`test/accuracy`"


def test_a_seed_has_its_parameters_configuration_data_and_pictures(compose, uri, prepared_digits):
    train(compose(*tracked(uri, "tracking.log_model=false")), strict=True)
    (run,) = runs_of(uri, "seed")
    client = MlflowClient(uri)
    assert run.data.params["recipe.optimizer.lr"] == "0.05"
    assert run.data.params["model._target_"] == "convatlas.models.classification.lenet.LeNet5Modern"
    assert run.data.params["seed"] == "0"
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "metrics.json", "history.csv", "predictions.parquet", "environment.json"} <= artifacts
    pictures = {a.path for a in client.list_artifacts(run.info.run_id, "figures")}
    names = ("confusion_matrix", "first_filters", "samples", "training_batch")
    assert pictures == {f"figures/{name}.png" for name in names}
    card = PreparedData.open(prepared_digits).card
    assert run.data.tags["convatlas.data"] == card.fingerprint
    assert run.inputs.dataset_inputs[0].dataset.digest == card.fingerprint[:36]
    everything = json.dumps({**run.data.params, **run.data.tags})
    assert str(ROOT) not in everything


def test_report_and_atlas_are_artifacts_of_one_run_and_the_report_describes_its_experiment(compose, uri, tmp_path):
    folder, atlas = tmp_path / "reports" / "adhoc", tmp_path / "reports" / "atlas"
    folder.mkdir(parents=True)
    assert publish_reports({"adhoc": folder}, uri) == []  # no store is made for it
    assert publish_atlas(atlas, ["adhoc"], uri) is None
    train(compose(*tracked(uri, "tracking.log_model=false", "recipe.epochs=1")), strict=True)
    for text in ("first", "second"):
        (folder / "index.html").write_text(text)
        (folder / "table.md").write_text(f"# {text}")
        assert publish_reports({"adhoc": folder, "not_tracked": folder}, uri) == ["adhoc"]
    (report,) = runs_of(uri, "report")
    assert report.info.status == "FINISHED"
    client = MlflowClient(uri)
    assert Path(client.download_artifacts(report.info.run_id, "index.html")).read_text() == "second"
    assert client.get_experiment_by_name("adhoc").tags["mlflow.note.content"] == "# second"
    for text in ("first", "second"):
        write_text(atlas / "nets" / "lenet5.html", text)
        assert publish_atlas(atlas, ["not_tracked", "adhoc"], uri) == "adhoc"
    assert Path(client.download_artifacts(report.info.run_id, "atlas/nets/lenet5.html")).read_text() == "second"
    assert Path(client.download_artifacts(report.info.run_id, "index.html")).read_text() == "second"


def test_a_second_training_of_a_variant_keeps_one_parent_with_one_curve(compose, uri):
    for seed in (0, 1):
        train(compose(*tracked(uri, "tracking.log_model=false"), seeds=[seed]), strict=True)
    (parent,) = runs_of(uri, "variant")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(uri, "seed")} == {parent.info.run_id}
    assert len(MlflowClient(uri).get_metric_history(parent.info.run_id, "val/accuracy")) == 2
    assert parent.data.tags["convatlas.seeds"] == "2"


@pytest.mark.parametrize(("error", "status"), [(MemoryError, "FAILED"), (SystemExit, "KILLED")])
def test_a_training_that_ends_badly_says_so_and_resumes_in_the_same_run(compose, uri, monkeypatch, error, status):
    losses = ClassificationTask.losses

    def fail_in_the_second_epoch(self, batch):
        if self.current_epoch == 1:
            raise error
        return losses(self, batch)

    monkeypatch.setattr(ClassificationTask, "losses", fail_in_the_second_epoch)
    options = tracked(uri, "tracking.log_model=false")
    with pytest.raises(error):
        train(compose(*options), strict=True)
    (run,), (parent,) = runs_of(uri, "seed"), runs_of(uri, "variant")
    assert (run.info.status, parent.info.status) == (status, status)
    monkeypatch.setattr(ClassificationTask, "losses", losses)
    train(compose(*options), strict=True)
    (resumed,) = runs_of(uri, "seed")
    assert (resumed.info.run_id, resumed.info.status) == (run.info.run_id, "FINISHED")
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2]


def test_a_run_of_a_process_that_is_gone_is_marked_killed(compose, uri):
    train(compose(*tracked(uri, "tracking.log_model=false")), strict=True)
    client = MlflowClient(uri)
    (run,) = runs_of(uri, "seed")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    client.set_tag(run.info.run_id, "convatlas.process", str(gone.pid))
    client.update_run(run.info.run_id, status="RUNNING")
    Experiment(uri, "adhoc")
    assert client.get_run(run.info.run_id).info.status == "KILLED"


def test_the_logged_model_answers_as_the_net_does_and_has_its_alias(compose, uri, prepared_digits):
    import mlflow

    options = tracked(uri, "tracking.register_as=digits", "tracking.alias=champion")
    (folder,) = train(compose(*options), strict=True)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    images = PreparedData.open(prepared_digits).split("test").images[:5].astype(np.float32) / 255
    images = np.repeat(np.repeat(images, 4, axis=2), 4, axis=3)
    answer = np.array([each["probabilities"] for each in model.predict({"image": [*images]})])
    assert answer.shape == (5, 10)
    assert np.allclose(answer.sum(axis=1), 1, atol=1e-5)
    assert model.metadata.signature.inputs.to_dict() == [{"type": "any", "name": "image", "required": True}]
    import torch

    from convatlas.models.served import ServedNet
    from convatlas.training.trained import load_run

    card = PreparedData.open(prepared_digits).card
    with torch.no_grad():
        expected = ServedNet(load_run(folder).net, card.mean, card.std).eval()(torch.from_numpy(images)).numpy()
    assert np.allclose(answer, expected, atol=1e-5)


def test_a_server_that_does_not_answer_is_told_in_one_sentence(compose):
    with pytest.raises(UserError, match=r"tracking store http://127.0.0.1:9 does not answer .* tracking=none"):
        train(compose("tracking=mlflow", "tracking.uri=http://127.0.0.1:9"), strict=True)


@pytest.mark.slow
def test_four_trainings_at_once_on_a_database_that_does_not_exist(compose, uri, tmp_path):
    from convatlas.core.files import write_yaml

    processes = []
    for number in range(4):
        config = compose(*tracked(uri, "tracking.log_model=false"), folder=f"run{number}", seeds=[number])
        write_yaml(tmp_path / "project" / "plan" / "study" / f"{number}.yaml", {"config": config.plain()})
        command = [sys.executable, "-m", "convatlas.train", "--from-plan", f"study/{number}"]
        processes.append(
            subprocess.Popen(command, cwd=tmp_path / "project", env={**os.environ}, stderr=subprocess.PIPE, text=True)
        )
    errors = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    client = MlflowClient(uri)
    assert [e.name for e in client.search_experiments(view_type=ViewType.ALL)].count("adhoc") == 1
    seeds = runs_of(uri, "seed")
    assert sorted(run.data.params["seed"] for run in seeds) == ["0", "1", "2", "3"]
    assert {run.info.status for run in seeds} == {"FINISHED"}
    for run in seeds:
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
