"""What of finished runs MLflow does not have is sent later, once; what it keeps of several seeds; what costs no run."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.utils.validation import _validate_metric_name

from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.files import write_yaml
from convatlas.core.metrics import direction
from convatlas.core.record import RunRecord
from convatlas.data.card import Card
from convatlas.tracking.records import best_seed, mean_and_std
from convatlas.tracking.runs import Experiment, Run, clean_names, metrics_of
from convatlas.tracking.store import connect
from convatlas.tracking.tracker import MlflowSeedTracker, MlflowVariantTracker, open_tracker
from convatlas.training.run import train
from helpers import assert_one_sentence

TRACKED = ("tracking=mlflow", "tracking.log_model=false", "tracking.system_metrics=false")
EPOCHS = 2


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database without runs, which takes seconds to make."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{database}")
    return database


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the one training of these tests is kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    """Return the address of a database without runs."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def config(compose, uri, kept, tmp_path):
    """Return the configuration of two finished seeds that MLflow has not heard of; their files are there."""
    config = compose(*TRACKED, f"tracking.uri={uri}", seeds=[0, 1])
    if not (kept / "run").exists():
        train(compose(*TRACKED, "tracking.enabled=false", seeds=[0, 1]), strict=True)
        shutil.copytree(tmp_path / "run", kept / "run")
    shutil.copytree(kept / "run", tmp_path / "run", dirs_exist_ok=True)
    for folder in config.output_dir.glob("seed=*"):
        write_yaml(folder / "config.yaml", config.plain())
    return config


def tracker_of(config) -> MlflowVariantTracker:
    """Return the tracker of a variant."""
    card = Card.read(config.data.prepared)
    return MlflowVariantTracker(config, card.fingerprint, card)


def runs_of(uri: str, role: str):
    """Return the runs with a role, by seed."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("adhoc")
    found = client.search_runs([experiment.experiment_id], f"tags.`convatlas.role` = '{role}'")
    return sorted(found, key=lambda run: run.data.params.get("seed", ""))


def assert_whole(uri: str, folders: list[Path]) -> None:
    """Compare what MLflow has with the files: every seed once, every epoch once, every file."""
    client = MlflowClient(uri)
    runs = runs_of(uri, "seed")
    assert [run.data.params["seed"] for run in runs] == [folder.name.removeprefix("seed=") for folder in folders]
    (parent,) = runs_of(uri, "variant")
    for run, folder in zip(runs, folders, strict=True):
        record = RunRecord.read(folder)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for name in ("lr", "train/loss", "val/accuracy"):
            logged = client.get_metric_history(run.info.run_id, name)
            assert [(m.step, m.value) for m in logged] == list(enumerate(record.columns[name], start=1))
        for name in ("test/accuracy", "best_epoch", "val/accuracy_best"):
            assert len(client.get_metric_history(run.info.run_id, name)) == 1
        assert run.data.metrics["test/accuracy"] == record.metrics.test["accuracy"]
        assert run.data.metrics["cost/parameters"] == record.metrics.costs["parameters"]
        assert {"config.yaml", "metrics.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
        assert run.inputs.dataset_inputs[0].dataset.digest == record.metrics.data_fingerprint[:36]
    tests = [RunRecord.read(folder).metrics.test["accuracy"] for folder in folders]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["test/accuracy"] == pytest.approx(sum(tests) / len(tests))
    assert [m.step for m in client.get_metric_history(parent.info.run_id, "val/accuracy")] == [1, 2]


def folders_of(config) -> list[Path]:
    """Return the folders of the seeds."""
    return [config.output_dir / f"seed={seed}" for seed in config.seeds]


def test_track_sends_what_mlflow_does_not_have_and_nothing_twice(config, uri, enter, empty_store):
    first = enter("track", str(config.output_dir))
    assert first.status == 0, first.err
    assert [line.rpartition(": ")[2] for line in first.out.splitlines()] == ["sent", "sent"]
    assert_whole(uri, folders_of(config))
    before = {run.info.run_id for role in ("seed", "variant") for run in runs_of(uri, role)}
    again = enter("track", *map(str, folders_of(config)))
    assert [line.rpartition(": ")[2] for line in again.out.splitlines()] == ["is there already"] * 2
    assert {run.info.run_id for role in ("seed", "variant") for run in runs_of(uri, role)} == before
    shutil.copy(empty_store, uri.removeprefix("sqlite:///"))  # as if it had been deleted
    assert enter("track", str(config.output_dir)).status == 0
    assert_whole(uri, folders_of(config))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Name the folder of a run", "convatlas.track runs/overview/lenet5"]),
        (["nowhere"], ["nowhere holds no finished run"]),
        (["{run}", "uri=mlruns"], ["mlruns is a folder", "sqlite:///mlflow.db"]),
        (
            ["{run}", "uri=http://me:s3cret@127.0.0.1:9"],
            ["http://127.0.0.1:9 does not answer", "name another one by uri="],
        ),
        (["{run}", "url=x"], ["url=x holds no finished run"]),
    ],
)
def test_what_track_refuses(config, enter, arguments, words):
    entered = enter("track", *(argument.format(run=config.output_dir) for argument in arguments))
    assert_one_sentence(entered, *words)
    assert "s3cret" not in entered.err


@pytest.mark.parametrize("when", ["at the start", "after an epoch", "after the metrics", "at the very end"])
@pytest.mark.parametrize("status", ["RUNNING", pytest.param("KILLED", marks=pytest.mark.slow)])
def test_a_kill_after_the_results_were_written_is_repaired_by_the_next_start(config, uri, tmp_path, when, status):
    """The seed's run is completed, not made anew, and its work folder goes."""
    work = config.output_dir / ".work" / "seed=0"
    work.mkdir(parents=True)
    folder = config.output_dir / "seed=0"
    shutil.copy(folder / "identity.json", work)
    record = RunRecord.read(folder)
    tracker = tracker_of(config).opened()
    run = tracker.new_seed(0, digest(record.identity), tracker.code)
    run.remember(work / "mlflow_run_id")
    tracker.describe(run, 0)
    if when == "after an epoch":
        run.log_metrics(metrics_of({k: v for k, v in record.history[0].items() if k not in ("epoch", "step")}, 1))
    elif when != "at the start":
        tracker.log_record(run, record, folder if when == "at the very end" else tmp_path / "nothing")
    tracker.client.update_run(run.id, status=status)
    train(config, strict=True)
    assert_whole(uri, folders_of(config))
    assert runs_of(uri, "seed")[0].info.run_id == run.id
    assert not (config.output_dir / ".work").exists()


def test_an_unfinished_training_with_other_settings_is_left_alone(config):
    work = config.output_dir / ".work" / "seed=0"
    work.mkdir(parents=True)
    (work / "identity.json").write_text("{}")
    train(config, strict=True)
    assert (work / "identity.json").exists()


def test_seeds_of_older_settings_are_not_averaged(config, uri):
    identity = config.output_dir / "seed=1" / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"code": "older"}))
    with tracker_of(config.model_copy(update={"seeds": (0,)})).opened() as tracker:
        tracker.complete(config.output_dir / "seed=0")
    (parent,) = runs_of(uri, "variant")
    assert parent.data.tags["convatlas.seeds"] == "1"
    expected = RunRecord.read(config.output_dir / "seed=0").metrics.test["accuracy"]
    assert parent.data.metrics["test/accuracy"] == expected


def test_means_have_every_metric_and_hide_no_nan():
    rows = [{"val/dice": 0.5, "lr": 0.1}, {"val/dice": 0.7, "val/dice_rare": 0.2, "lr": 0.1}]
    means = mean_and_std(rows)
    assert means["val/dice"] == pytest.approx(0.6)
    assert means["val_std/dice"] == pytest.approx(math.sqrt(0.02))
    assert means["val/dice_rare"] == 0.2  # the first seed has none
    assert list(means)[-1] == "lr"
    assert math.isnan(mean_and_std([{"val/loss": 1.0}, {"val/loss": math.nan}])["val/loss"])


# ---- stores that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
def test_a_store_that_cannot_be_used_stops_train_but_no_pipeline(compose, capsys, strict):
    config = compose(*TRACKED, "tracking.uri=http://me:s3cret@127.0.0.1:9", "recipe.epochs=1")
    if strict:
        with pytest.raises(
            UserError, match=r"tracking store http://127.0.0.1:9 does not answer .* tracking=none"
        ) as told:
            train(config, strict=True)
        said = str(told.value)
        assert not config.output_dir.exists()
    else:
        (folder,) = train(config, strict=False)
        assert RunRecord.is_in(folder)
        said = capsys.readouterr().err
        assert "MLflow did not take this" in said
        assert f"`python -m convatlas.track {config.output_dir}` sends it" in said
    assert "s3cret" not in said


def test_a_store_that_takes_no_files_is_found_before_anything_starts(config, uri, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_text", full)
    with pytest.raises(UserError, match=r"does not answer \(.*No space left on device.*tracking=none"):
        open_tracker(config, Card.read(config.data.prepared))
    (parent,) = runs_of(uri, "variant")
    assert parent.info.status == "FAILED"


@pytest.mark.parametrize("method", ["log_params", "log_metrics", "log_files", "set_tags"])
def test_whatever_the_store_refuses_of_a_seed_costs_no_run_and_leaves_none_running(
    config, monkeypatch, capsys, method, tmp_path
):
    uri = config.tracking.uri

    def refused(*_):
        raise RuntimeError("no")

    with tracker_of(config).opened() as tracker:
        monkeypatch.setattr(Run, method, refused)
        seed = tracker.start_seed(0, tmp_path / "work")
        seed.log_epoch({"epoch": 1.0, "step": 1.0, "lr": 0.1})
        seed.log_results(config.output_dir / "seed=0")
        seed.end("FINISHED")
        monkeypatch.undo()
    assert all(run.info.status != "RUNNING" for role in ("seed", "variant") for run in runs_of(uri, role))
    if method != "set_tags":
        assert "MLflow did not take this: no" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "dice_left (old)",
        "dice_a[1]",
        "dice_$x$",
        "dice_α",
        "map_50 %",
        "val/a//b",
        "../x",
        "val/./x",
        "é" * 300,
        "/x",
        "x/",
    ],
)
def test_a_metric_of_any_name_is_logged(config, uri, name):
    experiment = Experiment(uri, "adhoc")
    run = experiment.start("names", {})
    (clean,) = clean_names({name: 1.0})
    _validate_metric_name(clean)
    run.log_metrics(metrics_of({name: 1.0}, 1))
    run.log_params({name: "value"})
    assert run.found.data.metrics == {clean: 1.0}


def test_clean_names_stay_apart():
    names = ["dice_a(b)", "dice_a[b]", "dice_a_b_", "dice_a{b}", "val/accuracy"]
    cleaned = clean_names(dict.fromkeys(names, 0))
    assert len(cleaned) == len(names)
    assert "val/accuracy" in cleaned
    assert "dice_a_b_" in cleaned
    for name in cleaned:
        _validate_metric_name(name)


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """Return the folders whose models are logged, which takes seconds and is not done here."""
    folders: list[str] = []

    def log(run_id, config, card, folder, packages):
        folders.append(folder.name)
        client = MlflowClient()
        experiment = client.get_run(run_id).info.experiment_id
        model = client.create_logged_model(experiment, name="model", source_run_id=run_id)
        client.log_model_artifacts(model.model_id, str(folder / "figures"))
        return client.finalize_logged_model(model.model_id, "READY").model_uri

    monkeypatch.setattr("convatlas.tracking.serving.log_served_model", log)
    return folders


def set_best(config, monitor: str, values: list[float]) -> None:
    """Let the seeds have these validation scores."""
    for folder, value in zip(folders_of(config), values, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["monitor"], metrics["best"][monitor] = monitor, value
        metrics["monitor_mode"] = direction(monitor)
        (folder / "metrics.json").write_text(json.dumps(metrics))


def test_a_run_does_not_end_before_it_began(uri, monkeypatch):
    """The clock was set back between a kill and the next start."""
    run = Experiment(uri, "adhoc").start("clock", {})
    monkeypatch.setattr("convatlas.tracking.runs.time.time", lambda: 1000.0)
    run.end("FINISHED")
    assert run.found.info.end_time == run.found.info.start_time > 1_000_000


@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [
        ("val/accuracy", [0.8, 0.9], "seed=1"),
        ("val/accuracy", [0.9, 0.9], "seed=0"),
        ("val/accuracy", [math.nan, 0.1], "seed=1"),
        ("val/loss", [0.8, 0.9], "seed=0"),
        ("val/loss", [math.nan, 0.9], "seed=1"),
        ("val/calibration_error", [0.2, 0.1], "seed=1"),
    ],
)
def test_the_best_seed(config, monitor, scores, best):
    set_best(config, monitor, scores)
    assert best_seed({folder: RunRecord.read(folder) for folder in folders_of(config)}).name == best


@pytest.mark.parametrize(
    ("log_model", "expected"), [("false", []), ("true", ["seed=1"]), ("each_seed", ["seed=0", "seed=1"])]
)
def test_models_are_logged_once(compose, config, logged, log_model, expected):
    uri = config.tracking.uri
    set_best(config, "val/accuracy", [0.8, 0.9])
    config = compose(*TRACKED[::2], f"tracking.uri={uri}", f"tracking.log_model={log_model}", seeds=[0, 1])
    for _ in range(2):
        train(config, strict=True)
    assert logged == expected
    for run in runs_of(uri, "seed"):
        assert run.info.status == "FINISHED"


def test_a_registration_that_failed_is_repeated_by_track(config, uri, logged, monkeypatch, enter):
    import mlflow

    set_best(config, "val/accuracy", [0.8, 0.9])
    chosen = {"register_as": "digits", "alias": "champion"}
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update=chosen)})
    for folder in folders_of(config):
        write_yaml(folder / "config.yaml", config.plain())

    def refused(*_):
        raise ConnectionError("the registry is away")

    register = mlflow.register_model
    monkeypatch.setattr(mlflow, "register_model", refused)
    with pytest.raises(
        UserError, match=r"not registered as digits: .*registry is away.*convatlas.track .* tries it again"
    ):
        train(config, strict=True)
    (parent,) = runs_of(uri, "variant")
    assert parent.info.status == "FINISHED"
    monkeypatch.setattr(mlflow, "register_model", register)
    for _ in range(2):
        entered = enter("track", str(config.output_dir))
        assert entered.status == 0, entered.err
        monkeypatch.setattr(mlflow, "register_model", refused)  # the second time it is there
    version = MlflowClient(uri).get_model_version_by_alias("digits", "champion")
    (best,) = [run for run in runs_of(uri, "seed") if run.data.params["seed"] == "1"]
    assert version.source == best.data.tags["convatlas.model_uri"]
    assert len(MlflowClient(uri).search_model_versions("name = 'digits'")) == 1
    assert logged == ["seed=1"]


def test_what_track_advises_is_an_option_of_its_own(enter, config, tmp_path):
    entered = enter("track", str(config.output_dir), f"uri=sqlite:///{tmp_path / 'nowhere' / 'x.db'}")
    assert_one_sentence(entered, "nowhere", "uri=")
    assert "tracking=" not in entered.err


# ---- passwords ------------------------------------------------------------------------------------------------------

SECRET = "s3cr3t"
ADDRESS = f"http://me:{SECRET}@127.0.0.1:9"


def assert_nowhere(folder: Path, *said: str) -> None:
    """Look for the secret in everything below a folder and everything that was printed."""
    assert not [text for text in said if SECRET in text]
    for path in folder.rglob("*"):
        assert SECRET not in path.name
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


QUICK = ("model=lenet5_modern", "recipe.epochs=1", "trainer=debug", "trainer.limit_batches=1", "trainer.threads=1")


@pytest.mark.parametrize(
    "command",
    [
        ("train", *QUICK, f"tracking.uri={ADDRESS}"),
        ("train", *QUICK, f"tracking.uri={ADDRESS}", "tracking.enabled=false"),
        ("train", *QUICK, f"+tracking.uri={ADDRESS}"),
        ("train", *QUICK, f"tracking.urii={ADDRESS}"),
        ("train", "--multirun", *QUICK, f"tracking.uri={ADDRESS}", "tracking.enabled=false", "seed=0,1"),
        ("train", "--cfg", "job", f"tracking.uri={ADDRESS}"),
        (
            "tune",
            *QUICK,
            f"tracking.uri={ADDRESS}",
            "tracking.enabled=false",
            "tune.trials=1",
            "recipe.optimizer.lr=choice(0.1,0.01)",
        ),
        ("plan", "study=mini", f"overrides=tracking.uri={ADDRESS}"),
        ("ui", f"uri={ADDRESS}"),
    ],
    ids=lambda command: " ".join(word for word in command if word not in QUICK).replace(SECRET, "secret"),
)
def test_no_command_writes_or_prints_a_password(command, enter, monkeypatch, tmp_path, prepared_digits):
    from helpers import ROOT

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    data = (f"data.prepared={prepared_digits}",) if command[0] in ("train", "tune") else ()
    entered = enter(*command, *data)
    assert_nowhere(tmp_path, entered.out, entered.err)


def test_a_password_in_the_configuration_is_in_none_of_the_files(compose, uri, tmp_path):
    """Where it comes from a file under conf/ or from params.yaml, so that no command line is looked through."""
    config = compose(*TRACKED, f"tracking.uri={ADDRESS}", "recipe.epochs=1")
    assert config.tracking.uri == ADDRESS
    assert SECRET not in json.dumps(config.plain())
    train(config, strict=False)
    assert_nowhere(tmp_path)
    written = yaml.safe_load((config.output_dir / "seed=0" / "config.yaml").read_text())
    assert written["tracking"]["uri"] == "http://127.0.0.1:9"


@pytest.mark.slow
def test_a_server_that_asks_for_a_password_gets_it_and_nobody_else(enter, monkeypatch, tmp_path, prepared_digits):
    from servers import mlflow_server, with_password

    from helpers import ROOT

    project = tmp_path / "project"
    project.mkdir()
    (project / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(project)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with (
        mlflow_server(f"sqlite:///{tmp_path / 'server.db'}", tmp_path / "server") as (inner, _),
        with_password(inner, "me", SECRET) as (address, asked),
    ):
        named = address.replace("://", f"://me:{SECRET}@")
        data = f"data.prepared={prepared_digits}"
        sent = enter("train", *QUICK, "tracking=mlflow", data, f"tracking.uri={named}", "output_dir=runs/v")
        assert sent.status == 0, sent.err
        assert asked
        assert all(asked)
        own = enter("train", *QUICK, "tracking=none", data, "output_dir=runs/w", "variant=w")
        again = enter("track", "runs/w", f"uri={named}")
        plan = enter("plan", "study=thundernet", "seeds=0", f"overrides=tracking.uri={named}")
        resolve = enter("resolve")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        refused = enter("train", *QUICK, "tracking=mlflow", data, f"tracking.uri={address}", "output_dir=runs/x")
        assert_one_sentence(refused, "MLFLOW_TRACKING_PASSWORD")
        for each in (own, again, plan, resolve):
            assert each.status == 0, each.err
        runs = MlflowClient(inner).search_runs([e.experiment_id for e in MlflowClient(inner).search_experiments()])
        finished = [run for run in runs if run.info.status == "FINISHED" and "test/accuracy" in run.data.metrics]
        assert len({run.info.run_name for run in finished}) >= 2
    assert_nowhere(tmp_path, *(text for each in (sent, own, again, plan, resolve) for text in (each.out, each.err)))


# ---- terminals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_a_terminal_that_cannot_show_a_name_costs_no_run(encoding):
    code = "from convatlas.core.cli import run; run(lambda: print('mitral valve \\u2192 \\U0001f3c3'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"mitral valve \\u2192 \\U0001f3c3\n")


def test_mlflow_prints_no_address(config, uri, capsys):
    tracker = tracker_of(config).opened()
    tracker.run.end("FINISHED")
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    assert capsys.readouterr().out == ""
    assert len(tracker.client.search_runs([tracker.experiment.id], run_view_type=ViewType.ALL)) == 1


def test_a_seed_without_identity_is_tracked(config, tmp_path):
    with tracker_of(config).opened() as tracker:
        seed = MlflowSeedTracker(tracker, 5, tmp_path / "work")
        seed.end("KILLED")
