"""What MLflow gets of the record of a seed, and of the records of a variant's seeds together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.digests import flat
from convatlas.core.record import RunRecord
from convatlas.core.statistics import spread

__all__ = ["best_seed", "chosen_settings", "final_metrics", "mean_and_std", "row_of", "settings_of"]

LAST = ("lr", "best_epoch")
"""Logged last among metrics of their kind: where they are, the others are."""
MOST_PARAMS = 39
"""Settings of a run in MLflow, beside its seed."""
NOT_COMPARED = re.compile(
    r"data\.(root|prepared|source|split|storage|stored_side|task)\b|task\.|callbacks|loggers|metrics\b|weights$"
    r"|trainer\.(progress_bar|seeds_at_once|threads|workers|resident|checkpoint_every_n_steps|deterministic)$"
    r"|recipe\.(no_decay|augmentation\.crop_padding_mode|schedule\.interval)|.*\._(convert|partial)_$"
)


def row_of(row: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of an epoch, the one last by which a whole row is known."""
    return _ordered({name: value for name, value in row.items() if name not in ("epoch", "step")})


def final_metrics(record: RunRecord) -> dict[str, float | None]:
    """Return a finished seed's metrics that have no epochs, under the names by which MLflow groups."""
    metrics, timing = record.metrics, record.timing
    return _ordered(
        {
            **{f"test/{name}": value for name, value in metrics.test.items()},
            **{f"test_{part}/{name}": value for part, own in metrics.parts.items() for name, value in own.items()},
            **{f"cost/{name}": None if value is None else float(value) for name, value in metrics.costs.items()},
            "time/train_seconds": timing.train_seconds,
            "time/latency_seconds": timing.latency_seconds,
            **({f"{metrics.monitor}_best": metrics.best_score} if metrics.monitor in metrics.best else {}),
            "best_epoch": float(metrics.best_epoch),
        }
    )


def _ordered(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in sorted(values, key=LAST.__contains__)}


def mean_and_std(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean of each metric over the seeds that have it, and beside it the standard deviation.

    A NaN makes both NaN. `val_std/accuracy` stands beside `val/accuracy`, in a section of its own in the charts.
    """
    values: dict[str, float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        over_seeds = spread(row.get(name) for row in rows)
        if over_seeds is None:
            continue
        values[name] = over_seeds.mean
        group, slash, metric = name.rpartition("/")
        if over_seeds.std is not None and slash and group != "cost":  # a net costs the same with every seed
            values[f"{group}_std/{metric}"] = over_seeds.std
    return _ordered(values)


def chosen_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings by which users compare runs: what is switched on of net, data, recipe and trainer.

    There are `MOST_PARAMS` at most; of more, the last of the recipe's augmentation and of the trainer are left out.
    """
    sections = {name: config[name] for name in ("data", "model", "recipe", "trainer") if name in config}
    values = {name: value for name, value in flat(sections).items() if not NOT_COMPARED.match(name)}
    kept = {name: value for name, value in values.items() if value not in (None, False, 0, "", [], {})}
    order = sorted(kept, key=lambda name: (name.startswith("trainer."), "augmentation" in name))
    return {name: kept[name] for name in order[:MOST_PARAMS]}


def settings_of(record: RunRecord) -> dict[str, Any] | None:
    """Return what the seeds of one variant have in common of their identity."""
    if record.identity is None:
        return None
    return {key: value for key, value in record.identity.items() if key not in ("seed", "weights")}


def best_seed(folders: Mapping[Path, RunRecord]) -> Path:
    """Return the folder of the seed with the best validation score, the first of equals."""

    def score(folder: Path) -> float:
        metrics = folders[folder].metrics
        value = -metrics.best_score if metrics.monitor_mode == "min" else metrics.best_score
        return -math.inf if math.isnan(value) else value

    return max(folders, key=score)
