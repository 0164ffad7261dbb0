"""Stores that are new, half made, moved, locked, read-only or something else; and passwords in their addresses."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import threading
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from mlflow import MlflowClient

from convatlas.core.errors import UserError
from convatlas.core.passwords import hide_passwords, split_address, without_password
from convatlas.tracking import store
from convatlas.tracking.reports import publish_reports
from convatlas.tracking.store import connect, experiment_id, tracking_uri


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with one experiment, which takes seconds to make."""
    database = tmp_path_factory.mktemp("made") / "mlflow.db"
    uri = f"sqlite:///{database}"
    client = connect(uri)
    run = client.create_run(experiment_id(client, uri, "digits"))
    client.log_text(run.info.run_id, "words", "file.txt")
    return database


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    """Return a copy of that database without artifacts."""
    return Path(shutil.copy(made, tmp_path / "mlflow.db"))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("sqlite:///new.db", "sqlite:///{here}/new.db"),
        ("sqlite:///sub/../new.db", "sqlite:///{here}/new.db"),
        ("sqlite+pysqlite:///new.db", "sqlite:///{here}/new.db"),
        ("sqlite:////tmp/new.db", "sqlite:////tmp/new.db"),
        ("sqlite:///a b/new.db", "sqlite:///{here}/a b/new.db"),
        (None, "sqlite:///{here}/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_the_address_of_a_store(monkeypatch, tmp_path, address, expected, variable):
    monkeypatch.chdir(tmp_path)
    if variable and address is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking_uri(None if variable else address) == expected.format(here=tmp_path)


@pytest.mark.parametrize("folder", ["a?b", "100% mine", "a'b\"c"])
def test_a_folder_that_mlflow_cannot_have_in_an_address_is_told(monkeypatch, tmp_path, folder):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(
        UserError, match=rf"{re.escape(folder)}/mlflow\.db has a sign .*; rename the folder, .*tracking=none"
    ):
        tracking_uri(None)
    assert list(tmp_path.rglob("*")) == [tmp_path / folder]


@pytest.mark.parametrize("address", ["mlruns", "./mlruns", "file:mlruns", "file:///tmp/mlruns", "/tmp/mlruns"])
def test_a_folder_is_no_store(address):
    with pytest.raises(UserError, match=r"is a folder, which MLflow no longer supports; name a database, for example"):
        tracking_uri(address)


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///:memory:", "sqlite:new.db"])
def test_a_database_has_a_file(address):
    with pytest.raises(UserError, match=r"names no file; write it as sqlite:///mlflow.db"):
        tracking_uri(address)


def test_an_experiment_of_dvc_tracks_in_the_original_project(monkeypatch, tmp_path):
    copy = tmp_path / "project" / ".dvc" / "tmp" / "exps" / "standalone" / "copy"
    monkeypatch.setenv("DVC_ROOT", str(copy))
    assert tracking_uri(None) == f"sqlite:///{tmp_path / 'project' / 'mlflow.db'}"
    assert tracking_uri("sqlite:///other.db") == f"sqlite:///{tmp_path / 'project' / 'other.db'}"


def tables(file: Path, *statements: str) -> None:
    """Write a database."""
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


HALF_MADE = {
    "empty": (),
    "first table": ("CREATE TABLE experiments (experiment_id INTEGER)",),
    "version alone": ("CREATE TABLE alembic_version (version_num TEXT)",),
    "all but rows": (
        "CREATE TABLE experiments (experiment_id INTEGER)",
        "CREATE TABLE runs (run_uuid TEXT)",
        "CREATE TABLE alembic_version (version_num TEXT)",
        "INSERT INTO alembic_version VALUES ('451aebb31d03')",
    ),
}


@pytest.mark.parametrize("state", HALF_MADE)
def test_a_store_whose_making_was_killed_is_made_anew(monkeypatch, tmp_path, made, capsys, state):
    monkeypatch.setattr(store, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(store, "_make", lambda file: shutil.copy(made, file))
    database = tmp_path / "mlflow.db"
    tables(database, *HALF_MADE[state])
    client = connect(f"sqlite:///{database}")
    assert {experiment.name for experiment in client.search_experiments()} == {"Default", "digits"}
    kept = list(tmp_path.glob("mlflow.db.incomplete-*"))
    assert len(kept) == (1 if HALF_MADE[state] else 0)
    assert ("half made" in capsys.readouterr().err) == bool(HALF_MADE[state])


def test_a_kill_while_the_store_is_made_leaves_nothing_in_its_place(monkeypatch, tmp_path):
    database = tmp_path / "mlflow.db"
    search = MlflowClient.search_experiments

    def killed(self, **options):
        search(self, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "search_experiments", killed)
    with pytest.raises(KeyboardInterrupt):
        connect(f"sqlite:///{database}")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    monkeypatch.setattr(MlflowClient, "search_experiments", search)
    before = os.umask(0o022)
    try:
        client = connect(f"sqlite:///{database}")
    finally:
        os.umask(before)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    assert stat.S_IMODE(database.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def artifact_roots(database: Path) -> set[str]:
    """Return where a database says that artifacts are."""
    with sqlite3.connect(database) as connection:
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = 'digits' UNION SELECT artifact_uri FROM runs"
        )
        roots = {row[0].partition("/mlartifacts/")[0] for row in found}
    connection.close()
    return roots


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_in_another_folder_has_its_artifacts_there(tmp_path, made, capsys, how):
    before, after = tmp_path / "project", tmp_path / "the other project"
    before.mkdir()
    shutil.copy(made, before / "mlflow.db")
    shutil.copytree(made.parent / "mlartifacts", before / "mlartifacts")
    connect(f"sqlite:///{before / 'mlflow.db'}")
    assert artifact_roots(before / "mlflow.db") == {before.as_uri()}
    capsys.readouterr()
    before.rename(after) if how == "moved" else shutil.copytree(before, after)
    client = connect(f"sqlite:///{after / 'mlflow.db'}")
    assert str(after / "mlartifacts") in capsys.readouterr().err
    assert artifact_roots(after / "mlflow.db") == {after.as_uri()}
    experiment = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([experiment])
    assert Path(url2pathname(urlsplit(run.info.artifact_uri).path), "file.txt").read_text() == "words"
    client.log_text(client.create_run(experiment).info.run_id, "more", "new.txt")
    assert len(list(after.rglob("new.txt"))) == 1
    assert list(before.rglob("new.txt")) == []
    connect(f"sqlite:///{after / 'mlflow.db'}")
    assert capsys.readouterr().err == ""


def test_artifacts_that_a_user_put_elsewhere_stay_there(database):
    client = MlflowClient(f"sqlite:///{database}")
    client.create_experiment("mine", artifact_location="file:///large/disk/mlartifacts/mine")
    connect(f"sqlite:///{database}")
    assert client.get_experiment_by_name("mine").artifact_location == "file:///large/disk/mlartifacts/mine"


def another_program(file: Path) -> None:
    file.unlink()
    tables(file, "CREATE TABLE studies (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)")


def of_an_older_version(file: Path) -> None:
    tables(file, "UPDATE alembic_version SET version_num = '451aebb31d03'")


def test_a_driver_that_is_not_installed_is_named():
    with pytest.raises(UserError, match=r"No module named .*Install .*postgresql\+psycopg2.*tracking=none"):
        connect("postgresql+pg8000://me:s3cret@127.0.0.1:9/db")


UNUSABLE = {
    "no database": (lambda file: file.write_text("words\n" * 1000), "is no SQLite database"),
    "another program": (another_program, "is the database of another program"),
    "older version": (of_an_older_version, "mlflow db upgrade sqlite:///"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "is a folder, no database; name another store"),
    "no folder": (lambda file: shutil.rmtree(file.parent), "does not exist; make it"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_store_that_cannot_be_used_is_one_sentence(database, tmp_path, what):
    spoil, message = UNUSABLE[what]
    folder = tmp_path / "inner"
    folder.mkdir()
    spoil(Path(shutil.move(database, folder / "mlflow.db")))
    with pytest.raises(UserError, match=message) as told:
        connect(f"sqlite:///{folder / 'mlflow.db'}")
    assert "tracking=none" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_store_that_is_locked_is_one_sentence(database, monkeypatch):
    monkeypatch.setattr(store, "LOCKED_SECONDS", 0.2)
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"is locked by another program .* close that, .* tracking=none"):
            connect(f"sqlite:///{database}")
        release = threading.Timer(0.5, other.interrupt)
        release.start()
        release.join()
        other.execute("ROLLBACK")
    other.close()
    assert connect(f"sqlite:///{database}")


@pytest.mark.parametrize("protected", ["file", "folder"])
def test_a_store_that_belongs_to_another_user_is_one_sentence(made, protected):
    folder = Path(mkdtemp(prefix="convatlas-"))
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    shutil.copy(made, folder / "mlflow.db")
    try:
        (folder / "mlflow.db").chmod(0o444 if protected == "file" else 0o666)
        folder.chmod(0o777 if protected == "file" else 0o555)
        with (
            somebody_else(),
            pytest.raises(UserError, match=r"cannot be written; change its permissions.*tracking=none"),
        ):
            connect(uri)
        with somebody_else(), pytest.raises(UserError, match="cannot be written"):
            publish_reports({"digits": folder}, uri)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


class somebody_else:  # noqa: N801 - reads as what it does
    """Let root, who may write everything, be a user who may not."""

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)


# ---- passwords ------------------------------------------------------------------------------------------------------

SECRETS = [
    ("http://user:s3cret@host:5000", "http://user:***@host:5000", "http://host:5000"),
    ("https://s3cret@host/path", "https://***@host/path", "https://host/path"),
    ("http://user:a/s3cret@b@host", "http://user:***@host", "http://host"),
    ("postgresql+psycopg2://user:s3cret%40@host/db", "postgresql+psycopg2://user:***@host/db", None),
]


@pytest.mark.parametrize(("address", "masked", "shown"), SECRETS)
def test_an_address_is_shown_without_its_password(address, masked, shown):
    assert without_password(f"cannot reach {address} now, mail a@b.org") == f"cannot reach {masked} now, mail a@b.org"
    assert split_address(address).shown == (shown or "postgresql+psycopg2://user@host/db")
    assert without_password("mysql://host/db?user=u&password=s3cret&x=1") == "mysql://host/db?user=u&password=***&x=1"


@pytest.mark.parametrize(
    ("address", "shown", "whole"),
    [
        ("postgresql://host/db?password=s3%40t&a=b", "postgresql://host/db?a=b", "postgresql://:s3%40t@host/db?a=b"),
        ("mysql://me@host/db?a=b&Password=s3t", "mysql://me@host/db?a=b", "mysql://me:s3t@host/db?a=b"),
        ("http://host/?api_key=s3t&a=b", "http://host/?api_key=***&a=b", "http://host/?api_key=s3t&a=b"),
        ("http://host/?auth=s3t", "http://host/?auth=***", "http://host/?auth=s3t"),
    ],
)
def test_a_password_after_the_question_mark_is_one(address, shown, whole):
    assert split_address(address).shown == shown
    assert split_address(address).whole == whole
    assert "s3" not in without_password(address)


@pytest.mark.parametrize("text", ["https://host:8080/path", "sqlite:///a b.db", "a@b.org", "see https://x.org/@name"])
def test_what_holds_no_password_stays(text):
    assert without_password(text) == text
    assert split_address(text).whole == text


@pytest.mark.parametrize("form", ["tracking.uri={}", "++tracking.uri='{}'", 'overrides=tracking.uri="{}"'])
def test_the_password_of_an_argument_goes_to_the_environment(monkeypatch, form):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert hide_passwords([form.format("http://me:s3cret%40@host"), "a=b"]) == [form.format("http://host"), "a=b"]
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "s3cret@")


def test_a_database_gets_its_password_from_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p@ss")
    assert store._with_credentials("postgresql://me@host/db") == "postgresql://me:p%40ss@host/db"
    assert store._with_credentials("postgresql://me:other@host/db") == "postgresql://me:other@host/db"
