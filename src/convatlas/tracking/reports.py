"""The report of a study in MLflow: artifacts of one run of its experiment, and the experiment's description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convatlas.tracking.store import connect, database_file, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["publish_atlas", "publish_reports"]

ROLE = {"convatlas.role": "report"}
DESCRIPTION = "mlflow.note.content"  # what the page of an experiment shows above its runs, as Markdown
LONGEST = 5000  # characters of a tag


def publish_reports(folders: Mapping[str, Path], uri: str | None) -> list[str]:
    """Put each report into the experiment of its study, in place of an earlier one.

    Args:
        folders: the folder of each study's report; its `table.md` becomes the description where it is short enough.
        uri: of the store, or null, as in `tracking.uri`.

    Returns:
        The studies whose experiment is there; a study that was not tracked has none.

    Raises:
        UserError: the store does not take them.
    """
    address = tracking_uri(uri)
    database = database_file(address)
    if database is not None and not database.exists():
        return []
    client = connect(address)
    with explained(address):
        return [study for study, folder in folders.items() if _published(client, study, folder)]


def publish_atlas(folder: Path, studies: Sequence[str], uri: str | None) -> str | None:
    """Put the atlas beside the report of the first of `studies` that was tracked, and return that study.

    Raises:
        UserError: the store does not take it.
    """
    address = tracking_uri(uri)
    database = database_file(address)
    if database is not None and not database.exists():
        return None
    client = connect(address)
    with explained(address):
        for study in studies:
            if (run := _report_run(client, study)) is not None:
                client.log_artifacts(run, str(folder), "atlas")
                return study
    return None


def _report_run(client: MlflowClient, study: str) -> str | None:
    """Return the run that has the report of a study; None where the study was not tracked."""
    experiment = client.get_experiment_by_name(study)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return None
    found = client.search_runs([experiment.experiment_id], "tags.`convatlas.role` = 'report'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _published(client: MlflowClient, study: str, folder: Path) -> bool:
    experiment = client.get_experiment_by_name(study)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return False
    found = client.search_runs([experiment.experiment_id], "tags.`convatlas.role` = 'report'", max_results=1)
    run = found[0] if found else client.create_run(experiment.experiment_id, run_name="report", tags=ROLE)
    try:
        client.log_artifacts(run.info.run_id, str(folder))
    except Exception:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    table = (folder / "table.md").read_text(encoding="utf-8")
    if len(table) <= LONGEST:
        client.set_experiment_tag(experiment.experiment_id, DESCRIPTION, table)
    return True
