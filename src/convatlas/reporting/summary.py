"""The few figures that `dvc metrics show` and `dvc plots show` are for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from convatlas.core.statistics import Spread
from convatlas.reporting.study import Group, Study, Variant

Record = dict[str, Any]


def study_summary(study: Study) -> dict[str, dict[str, float]]:
    """Return the figures of each task; where a task has several data sets, of each of them, as `<task>_<data>`."""
    tasks = [group.task for group in study.groups]
    names = [group.task if tasks.count(group.task) == 1 else f"{group.task}_{group.data}" for group in study.groups]
    return {name: _group_summary(group) for name, group in zip(names, study.groups, strict=True)}


def _group_summary(group: Group) -> dict[str, float]:
    means = [found.mean for variant in group.variants if (found := _finite(variant.test(group.score)))]
    seconds = [taken for run in group.runs if (taken := run.seconds("train_seconds")) is not None]
    summary: dict[str, float] = {
        "variants": len(group.variants),
        "runs_finished": len(group.runs),
        "train_seconds": round(sum(seconds), 1),
    }
    if means:
        summary |= {
            "best_score": round(max(means) if group.metric.sign > 0 else min(means), 4),
            "mean_score": round(statistics.fmean(means), 4),
        }
    return summary


def variant_records(studies: Sequence[Study]) -> Iterable[Record]:
    """Give one record a variant that has a score; `run` is unique over all studies."""
    for study, group, variant in _variants(studies):
        if found := _finite(variant.test(group.score)):
            yield {
                "run": f"{study.name}/{variant.key}",
                "study": study.name,
                "variant": variant.key,
                "task": variant.task,
                "data": variant.data,
                "score": found.mean,
                "score_std": found.std,
                "seeds": found.n,
                "parameters": variant.cost("parameters"),
                "macs": variant.macs,
                "train_seconds": seconds.mean if (seconds := variant.seconds("train_seconds")) else None,
            }


def curve_records(studies: Sequence[Study]) -> Iterable[Record]:
    """Give the validation score of each variant and epoch, the mean over its seeds."""
    for study, group, variant in _variants(studies):
        for epoch, values in variant.curve(f"val/{group.score}"):
            names = {"run": f"{study.name}/{variant.key}", "study": study.name, "variant": variant.key}
            yield names | {"epoch": epoch, "score": statistics.fmean(values)}


def _variants(studies: Sequence[Study]) -> Iterable[tuple[Study, Group, Variant]]:
    return ((study, group, variant) for study in studies for group in study.groups for variant in group.variants)


def _finite(found: Spread | None) -> Spread | None:
    """Leave out the mean of a variant of which a seed diverged: JSON and the plots have no word for NaN."""
    return found if found is not None and found.is_finite else None
