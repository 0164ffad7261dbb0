"""What a person finds in MLflow of a search, and the trainings that end it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from convatlas.core.files import write_json
from convatlas.core.record import Metrics
from convatlas.data.card import Card
from convatlas.reporting.statistics import spread
from convatlas.search import driver
from convatlas.search.driver import run_search
from convatlas.search.outcome import _net, verdict
from convatlas.search.tracking import open_search_tracker
from convatlas.tracking.runs import Run


@pytest.mark.slow
def test_a_search_logs_every_net_with_reward_latency_and_entropy_also_after_a_kill(search, monkeypatch, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = search("fbnet_dnas", "tracking=mlflow", f"tracking.uri={uri}")
    save = driver._save

    def save_and_die(file, phase, strategy):
        save(file, phase, strategy)
        if phase.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(driver, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_search(run)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("search_fbnet_dnas")
    (killed,) = client.search_runs([experiment.experiment_id])
    assert killed.info.status == "KILLED"
    monkeypatch.setattr(driver, "_save", save)
    folder = run_search(run)
    (finished,) = client.search_runs([experiment.experiment_id])
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    steps = {
        name: [metric.step for metric in client.get_metric_history(finished.info.run_id, f"search/{name}")]
        for name in ("entropy", "latency", "reward")
    }
    # Two epochs, then two drawn nets: each once, although the search was killed between logging and saving.
    assert steps == {"entropy": [0, 1, 2, 3], "latency": [0, 1, 2, 3], "reward": [2, 3]}
    names = {artifact.path for artifact in client.list_artifacts(finished.info.run_id)}
    assert {"search.csv", "found.yaml", "report.html", "result.json", "latency.json"} <= names
    logged = client.download_artifacts(finished.info.run_id, "search.csv", str(tmp_path))
    text = Path(logged).read_text()
    assert all(architecture in text for architecture in sampled(folder))


@pytest.mark.parametrize("method", ["remember", "log_params"])
def test_a_search_that_was_killed_while_its_run_was_made_goes_on_in_it(
    search, monkeypatch, tmp_path, prepared_digits, method
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run, card = search("random", "tracking=mlflow", f"tracking.uri={uri}"), Card.read(prepared_digits)
    write_json(tmp_path / "work" / "identity.json", {"seed": 0})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Run, method, killed)
        with pytest.raises(KeyboardInterrupt):
            open_search_tracker(run, card, tmp_path / "work")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("search_random")
    (left,) = client.search_runs([experiment.experiment_id])
    client.set_terminated(left.info.run_id, "KILLED")  # as the next process does with runs of one that is gone
    open_search_tracker(run, card, tmp_path / "work")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.status) == (left.info.run_id, "RUNNING")
    assert found.data.params["seed"] == "0"


def sampled(folder):
    """Return the architectures that were sampled."""
    with (folder / "search.csv").open() as opened:
        return [row["architecture"] for row in csv.DictReader(opened) if row["architecture"]]


@pytest.mark.slow
def test_what_is_found_is_trained_beside_random_and_nets_made_by_hand(search):
    run = search(
        "fbnet_dnas",
        "search.finals.seeds=[0, 1]",
        "~search.finals.compared.fbnet_c",
        "search.finals.compared.mobilenet_v2=['model=lenet5_modern']",
        "search.random_beside=true",
        "data.image_size=32",
        "recipe.epochs=1",
        "recipe.batch_size=256",
    )
    folder = run_search(run)
    result = json.loads((folder / "result.json").read_text())
    assert set(result["nets"]) == {"found", "random", "mobilenet_v2"}
    for name, net in result["nets"].items():
        seeds = [folder / "finals" / name / f"seed={seed}" / "metrics.json" for seed in (0, 1)]
        tests = [json.loads(file.read_text())["test"]["accuracy"] for file in seeds]
        assert net["accuracies"] == tests
    assert [sentence.split()[0] for sentence in result["verdicts"]] == ["found", "found"]
    assert "random" in result["verdicts"][0]
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("91,000", "mobilenet_v2", *result["verdicts"]))


@pytest.mark.parametrize(
    ("ours", "other", "words"),
    [
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.82], "found beats random by 10.00 points"),
        (
            [0.90, 0.91, 0.92],
            [0.90, 0.92, 0.92],
            "found does not beat random: 91.00 % against 91.33 %",
        ),
        ([0.80, 0.81, 0.82], [0.90, 0.91, 0.92], "found does not beat random: it is 10.00 points worse"),
        ([0.90], [0.80], "one seed tells nothing of the spread"),
    ],
)
def test_a_search_that_does_not_beat_random_is_said_so(ours, other, words):
    assert words in verdict("found", spread(ours), "random", spread(other))


def test_a_net_of_which_a_seed_diverged_has_no_mean_and_is_not_compared(tmp_path):
    folders = [tmp_path / f"seed={seed}" for seed in (0, 1)]
    metrics = Metrics(
        seed=0,
        task="classification",
        data="digits",
        monitor="val/accuracy",
        epochs=1,
        best_epoch=1,
        best={},
        last={},
        test={"accuracy": 0.9},
        costs={"parameters": 10, "macs": 20},
    )
    write_json(folders[0] / "metrics.json", metrics.model_dump(mode="json"))
    write_json(folders[1] / "failure.json", {"error": "the loss is not finite"})
    net = _net(folders)
    assert (net["accuracy"], net["diverged"], net["parameters"]) == (None, 1, 10)
    found = spread([0.9, 0.9])
    sentence = "found and random: a training of random diverged, so neither is better."
    assert verdict("found", found, "random", None) == sentence
