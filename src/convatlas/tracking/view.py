"""The view of an experiment that MLflow's pages open with: variants by score, with what they cost, and charts of both.

MLflow keeps a view that somebody shares as a tag of the experiment, and shows it where an address names its key. The
tag is written here as its own "Share view" writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convatlas.core.metrics import metric

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["address", "view_state", "write_view"]

KEY = "convatlas"
TAG = f"mlflow.sharedViewState.{KEY}"
SCORES = "convatlas.scores"
"""The tag that lists the scores of the experiment's tasks, by which the view is made."""
COSTS = ("cost/parameters", "cost/macs", "time/train_seconds")
SECTION = "convatlas"


def address(base: str, experiment: str, mode: str) -> str:
    """Return the address of an experiment's view; `mode` is TABLE or CHART."""
    query = f"viewStateShareKey={KEY}&compareRunsMode={mode}&workflowType=machine_learning"
    return f"{base}/#/experiments/{experiment}/runs?{query}"


def write_view(client: MlflowClient, experiment: str, score: str) -> None:
    """Write the view of an experiment, which has runs with this test score and perhaps with others."""
    known = client.get_experiment(experiment).tags.get(SCORES, "")
    scores = list(dict.fromkeys([*filter(None, known.split(",")), score]))
    client.set_experiment_tag(experiment, SCORES, ",".join(scores))
    client.set_experiment_tag(experiment, TAG, json.dumps(view_state(scores)))


def view_state(scores: Sequence[str]) -> dict[str, Any]:
    """Return the state of MLflow's page: which runs, columns and charts it shows, and in which order.

    Args:
        scores: the names of the test metrics that rank the runs, the most important first.
    """
    columns = [f"metrics.`{name}`" for score in scores for name in (f"test/{score}", f"test_std/{score}")]
    columns += [f"metrics.`{name}`" for name in COSTS]
    charts = [
        chart
        for score in scores
        for chart in (
            _scatter(f"{score} against MACs", "cost/macs", f"test/{score}"),
            _scatter(f"{score} against parameters", "cost/parameters", f"test/{score}"),
            _bars(f"test/{score}"),
            _curves(f"val/{score}"),
        )
    ]
    return {
        "searchFilter": "tags.`convatlas.role` = 'variant'",
        "orderByKey": f"metrics.`test/{scores[0]}`",
        "orderByAsc": metric(scores[0]).direction == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, "attributes.`Dataset`"],
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [{"uuid": SECTION, "name": "Score and cost", "display": True, "isReordered": True}],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
    }


def _chart(kind: str, name: str, **options: Any) -> dict[str, Any]:
    place = {"metricSectionId": SECTION, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"type": kind, "uuid": f"{SECTION}-{name}", "displayName": name, **place, **options}


def _scatter(name: str, x: str, y: str) -> dict[str, Any]:
    return _chart("SCATTER", name, xaxis={"key": x, "type": "METRIC"}, yaxis={"key": y, "type": "METRIC"})


def _bars(name: str) -> dict[str, Any]:
    return _chart("BAR", name, metricKey=name)


def _curves(name: str) -> dict[str, Any]:
    looks = {"lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "xAxisKey": "step"}
    return _chart("LINE", name, metricKey=name, selectedMetricKeys=[name], yAxisKey="metric", **looks)
