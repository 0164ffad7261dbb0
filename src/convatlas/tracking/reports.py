"""The report of a study in MLflow: artifacts of one run of its experiment, and the experiment's description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convatlas.tracking.store import connect, tracking_uri

__all__ = ["publish_reports"]

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
        UserError: the store does not answer.
    """
    address = tracking_uri(uri)
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).exists():
        return []
    client = connect(address)
    published = []
    for study, folder in folders.items():
        experiment = client.get_experiment_by_name(study)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            continue
        found = client.search_runs([experiment.experiment_id], "tags.`convatlas.role` = 'report'", max_results=1)
        run = found[0] if found else client.create_run(experiment.experiment_id, run_name="report", tags=ROLE)
        client.log_artifacts(run.info.run_id, str(folder))
        client.set_terminated(run.info.run_id)
        table = (folder / "table.md").read_text()
        if len(table) <= LONGEST:
            client.set_experiment_tag(experiment.experiment_id, DESCRIPTION, table)
        published.append(study)
    return published
