"""Where MLflow keeps runs: a database in the project's folder unless a server is named.

The database is made whole or not at all, follows its project to another folder, and one that cannot be used is found
before anything starts.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

from convatlas.core.errors import UserError
from convatlas.core.files import full_disk
from convatlas.core.imports import quick_imports
from convatlas.core.passwords import PASSWORD, USERNAME, split_address, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["ANOTHER_STORE", "connect", "experiment_id", "store_lock", "tracking_uri"]

KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts, not on traces
ANOTHER_STORE = "name another store by tracking.uri or MLFLOW_TRACKING_URI, or pass tracking=none"
LOCKED_SECONDS = 20.0
QUIET_SECONDS = 3.0  # a database that is being made changes more often

# The columns in which MLflow keeps the absolute addresses of artifacts.
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def tracking_uri(configured: str | None) -> str:
    """Return the address of the store: the configured one, MLFLOW_TRACKING_URI, or `mlflow.db` of this project.

    Raises:
        UserError: it is a folder, in which MLflow no longer keeps runs, or a database in memory.
    """
    address = configured or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if re.match(r"sqlite\b", address):
        named = re.fullmatch(r"sqlite(?:\+pysqlite)?:///(?!:memory:)([^?]+)(\?.*)?", address)
        if named is None:
            raise UserError(f"The tracking store {address} names no file; write it as sqlite:///mlflow.db.")
        file = (_project_folder() / named[1]).resolve()
        if re.search(r"""[?%]|'.*"|".*'""", str(file), re.DOTALL):
            raise UserError(
                f"The path {file} has a sign that MLflow cannot have in the address of a database (?, % or both kinds "
                f"of quotes); rename the folder, {ANOTHER_STORE}."
            )
        return f"sqlite:///{file}{named[2] or ''}"
    is_folder = address.startswith("file:") or ("://" not in address and not address.startswith("databricks"))
    if is_folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
        raise UserError(
            f"The tracking store {address} is a folder, which MLflow no longer supports; "
            "name a database, for example sqlite:///mlflow.db (`mlflow migrate-filestore` converts a folder)."
        )
    return address


def _project_folder() -> Path:
    """Return the project's folder; that of the original in a DVC experiment, which runs in a temporary copy of it."""
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for parent in root.parents:
        if parent.name == ".dvc":  # .dvc/tmp/exps/<name>: the copy of an experiment
            return parent.parent
    return root


def database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for a server."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def connect(uri: str, *, read_only: bool = False) -> MlflowClient:
    """Return a client of a store that answers, with its tables made.

    Args:
        uri: of the store, from `tracking_uri`.
        read_only: take a database that this user may not write, for looking at it.

    Raises:
        UserError: the store does not answer, or cannot be written although it is to be.
    """
    # A server that is gone is reported in seconds, not after MLflow's own minutes of trying.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It prints an emoji, which not every terminal can show, and the address.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # They print tracebacks and lines of what is reported here in a sentence.
    for name, level in (("mlflow.store.db.utils", "CRITICAL"), ("alembic", "WARNING"), ("urllib3", "ERROR")):
        logging.getLogger(name).setLevel(level)
    database = database_file(uri)
    read_only = read_only and database is not None and database.exists() and not os.access(database, os.W_OK)
    if database is not None:
        # A connection that is kept would write into a file that was deleted meanwhile, and nobody would notice.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    with explained(uri), quick_imports():  # the client imports what its store needs
        from mlflow import MlflowClient, set_tracking_uri

        address = _with_credentials(uri)
        with nullcontext() if read_only else store_lock(uri):
            if database is not None and not read_only:
                _prepare(database)
            set_tracking_uri(address)
            client = MlflowClient(tracking_uri=address)
            client.search_experiments(max_results=1)
    return client


@contextmanager
def explained(uri: str, problem: str = "does not answer") -> Iterator[None]:
    """Turn whatever a store raises into one sentence with a remedy.

    Raises:
        UserError: something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shown = split_address(uri).shown
        reason = first_sentence(error)
        if "out-of-date database schema" in reason:
            remedy = f"Keep a copy of it, run `mlflow db upgrade {shown}`, or {ANOTHER_STORE}."
        elif re.search(r"\b40[13]\b", reason):
            remedy = f"Set {USERNAME} and {PASSWORD}, or {ANOTHER_STORE}."
        elif full_disk(error) is not None:
            remedy = f"Free some space, {ANOTHER_STORE}."
        elif isinstance(error, ModuleNotFoundError):
            driver = "`pip install 'convatlas[server]'` has that of postgresql+psycopg2://"
            remedy = f"Install {error.name}, or another driver that its address names ({driver}), or {ANOTHER_STORE}."
        elif database_file(uri) is not None:
            remedy = f"Mend the file or its folder, {ANOTHER_STORE}."
        else:
            remedy = f"Start it, {ANOTHER_STORE}."
        raise UserError(f"The tracking store {shown} {problem} ({reason}). {remedy}") from error


def first_sentence(error: Exception) -> str:
    """Return the first line of an error's message as it may be shown, shortened between words."""
    line = without_password((str(error).strip() or type(error).__name__).splitlines()[0])
    return line if len(line) <= 200 else f"{line[:200].rpartition(' ')[0]} ..."


def _with_credentials(uri: str) -> str:
    """Hand user and password of a server to MLflow by the environment, so that no message of it has them.

    A database gets the password from there where its address has a user without one.
    """
    address = split_address(uri)
    if uri.startswith(("http://", "https://")) and address.password:
        os.environ[USERNAME], os.environ[PASSWORD] = address.user, address.password
        return address.rest
    if address.user and not address.password and PASSWORD in os.environ:
        return address._replace(password=os.environ[PASSWORD]).whole
    return uri


# ---- the database of a project --------------------------------------------------------------------------------------


def store_lock(uri: str) -> AbstractContextManager[object]:
    """Return the lock under which a database file is created and its experiments are made; nothing for a server.

    Raises:
        UserError: the folder of the database cannot be written, or another process does not let go of the lock.
    """
    database = database_file(uri)
    if database is None:
        return nullcontext()
    if not database.parent.is_dir():
        raise UserError(f"{database.parent} does not exist; make it, or {ANOTHER_STORE}.")
    if database.is_dir():
        raise UserError(f"{database} is a folder, no database; {ANOTHER_STORE}.")
    if not os.access(database.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{database.parent} cannot be written; change its permissions, {ANOTHER_STORE}.")
    return _locked(database)


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    try:
        with FileLock(f"{database}.lock", timeout=120):
            yield
    except Timeout as error:
        raise UserError(f"Another process holds {database}.lock; wait for it, or {ANOTHER_STORE}.") from error


def _prepare(database: Path) -> None:
    """Make the database where there is none, and check one that is there; under the lock."""
    if database.exists() and not _holds_tables(database):
        _set_aside(database)
    if not database.exists():
        _make(database)
    try:
        with closing(_opened(database)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            _follow_move(connection, database)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            problem = f"is locked by another program since more than {LOCKED_SECONDS:.0f} seconds; close that"
        elif "readonly" in str(error) or "unable to open" in str(error):
            problem = "cannot be written; change its permissions"
        else:
            raise
        raise UserError(f"The tracking store {database} {problem}, {ANOTHER_STORE}.") from error


def _opened(database: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(database))}?mode=rw"
    return sqlite3.connect(address, uri=True, timeout=LOCKED_SECONDS, isolation_level=None)


def _holds_tables(database: Path) -> bool:
    """Say whether MLflow has finished making its tables; it enters a first experiment at the very end.

    Raises:
        UserError: the file is something else than MLflow's database.
    """
    end = time.time() + 60
    while True:
        try:
            with closing(_opened(database)) as connection:
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
                if tables - {"alembic_version"} and "experiments" not in tables:
                    raise UserError(f"{database} is the database of another program; {ANOTHER_STORE}.")
                if "experiments" in tables and connection.execute("SELECT 1 FROM experiments").fetchone():
                    return True
        except sqlite3.OperationalError:  # locked or not readable, of which the check tells
            return True
        except sqlite3.DatabaseError as error:
            raise UserError(f"{database} is no SQLite database, or a damaged one; {ANOTHER_STORE}.") from error
        if not tables or time.time() > min(end, database.stat().st_mtime + QUIET_SECONDS):
            return False
        time.sleep(0.2)  # another program, such as `mlflow server`, may be making it in this moment


def _set_aside(database: Path) -> None:
    """Rename a database that a killed process left half made, and what SQLite keeps beside it; it holds no run."""
    aside = database.with_name(f"{database.name}.incomplete-{time.time_ns() // 1_000_000}")
    for ending in ("-journal", "-wal", "-shm", ""):
        if (part := Path(f"{database}{ending}")).exists():
            part.rename(f"{aside}{ending}")
    if aside.stat().st_size == 0:
        aside.unlink()
    else:
        print(f"{database} was left half made and holds no run; it is now {aside.name}.", file=sys.stderr, flush=True)


def _make(database: Path) -> None:
    """Make the database under another name, so that a kill leaves no half of it."""
    from mlflow import MlflowClient

    for leftover in database.parent.glob(f".{glob.escape(database.name)}.*.partial*"):
        leftover.unlink()
    # A name of its own: MLflow keeps what it knows of an address as long as the process lives.
    partial = database.with_name(f".{database.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o660))  # no other users, whatever the umask lets them
    try:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments(max_results=1)
        partial.replace(database)
    finally:
        partial.unlink(missing_ok=True)


def _follow_move(connection: sqlite3.Connection, database: Path) -> None:
    """Let experiments have their artifacts beside the database, also after the project was moved or copied.

    MLflow keeps absolute addresses: new runs would write into the old folder, or into that of the original.
    """
    root = (database.parent / "mlartifacts").as_uri()
    made_here = connection.execute(
        "SELECT name, artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
        "WHERE key = ? AND value = ?",
        *KIND.items(),
    ).fetchall()
    old_roots = {where.removesuffix(f"/{name}") for name, where in made_here if where.endswith(f"/mlartifacts/{name}")}
    for old in sorted(old_roots - {root}):
        for table, column in ARTIFACT_COLUMNS:
            if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                    (root, len(old) + 1, len(old) + 1, f"{old}/"),
                )
        print(
            f"{database} was moved or copied: artifacts that were in {unquote(urlsplit(old).path)} are now looked for "
            f"in {database.parent / 'mlartifacts'}, and new ones are written there.",
            file=sys.stderr,
            flush=True,
        )


# ---- experiments ----------------------------------------------------------------------------------------------------


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if there is none."""
    with store_lock(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            database = database_file(uri)
            location = None if database is None else (database.parent / "mlartifacts" / name).as_uri()
            return _new_experiment(client, name, location)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)


def _new_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """Make an experiment, or find the one that another process made on the server in this moment."""
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=location, tags=KIND)
    except MlflowException:
        made = client.get_experiment_by_name(name)
        if made is None:
            raise
        return str(made.experiment_id)
