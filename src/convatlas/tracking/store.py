"""Where MLflow keeps runs: a database in the project's folder unless a server is named, made once under a lock."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from convatlas.core.errors import UserError
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    from mlflow import MlflowClient

KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts, not on traces


def tracking_uri(configured: str | None) -> str:
    """Return the address of the store: the configured one, MLFLOW_TRACKING_URI, or `mlflow.db` of this project.

    A DVC experiment runs in a temporary copy of the project; its runs belong into the original's database, which is
    where DVC_ROOT points.
    """
    if address := configured or os.environ.get("MLFLOW_TRACKING_URI"):
        return address
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    for parent in root.parents:
        if parent.name == ".dvc":  # .dvc/tmp/exps/<name>: the copy of an experiment
            root = parent.parent
            break
    return f"sqlite:///{root / 'mlflow.db'}"


def connect(uri: str) -> MlflowClient:
    """Return a client of a store that answers, with its tables made.

    Raises:
        UserError: the store does not answer, or cannot be written.
    """
    # A server that is gone is told in seconds, not after MLflow's own minutes of trying.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with quick_imports():
        from mlflow import MlflowClient, set_tracking_uri

    try:
        with quick_imports(), store_lock(uri):  # the client imports what its store needs
            set_tracking_uri(uri)
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        raise UserError(
            f"The tracking store {without_password(uri)} does not answer ({_first_line(error)}). "
            "Start it, correct tracking.uri or MLFLOW_TRACKING_URI, or pass tracking=none."
        ) from error
    return client


def store_lock(uri: str) -> AbstractContextManager[object]:
    """Return the lock under which a database file is created and its experiments are made; nothing for a server.

    Raises:
        UserError: the folder of the database cannot be written.
    """
    if not uri.startswith("sqlite:///"):
        return nullcontext()
    database = Path(uri.removeprefix("sqlite:///"))
    if not os.access(database.parent, os.W_OK):
        raise UserError(f"{database.parent} is not a folder that can be written; correct tracking.uri.")
    return FileLock(f"{database}.lock", timeout=120)


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if there is none."""
    with store_lock(uri):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = None
            if uri.startswith("sqlite:///"):
                location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()
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


def without_password(uri: str) -> str:
    """Return an address that can be shown."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
