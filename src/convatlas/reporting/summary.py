"""The few figures that `dvc metrics show` and `dvc plots show` are for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from convatlas.core.statistics import Spread
from convatlas.reporting.study import Group, Study, Variant
from convatlas.reporting.verdicts import judge
from convatlas.reporting.wording import metric_text

Record = dict[str, Any]


def overall(studies: Sequence[Study]) -> dict[str, float]:
    """Return a few figures of all studies together, as many columns as a terminal has room for.

    The mean score over the variants of each task, in the unit of reports; finished runs; claims that these confirm and
    refute; minutes of training.
    """
    figures: dict[str, float] = {}
    groups = [group for study in studies for group in study.groups]
    for name in dict.fromkeys(group.score for group in groups):
        of_score = [group for group in groups if group.score == name]
        means = [m for group in of_score for variant in group.variants if (m := _printed(group, variant)) is not None]
        if means:
            figures[name] = round(statistics.fmean(means), 2)
    figures["finished"] = sum(study.runs_finished for study in studies)
    verdicts = [entry.verdict for study in studies for entry in judge(study)]
    figures |= {"confirmed": verdicts.count("confirmed"), "refuted": verdicts.count("refuted")}
    seconds = (run.seconds("train_seconds") for group in groups for run in group.runs)
    return figures | {"train_minutes": round(sum(filter(None, seconds)) / 60, 1)}


def scores(studies: Sequence[Study]) -> dict[str, dict[str, float]]:
    """Return the mean test score of every variant as the reports print it, by study."""
    found = {
        study.name: {
            v.key: m for group in study.groups for v in group.variants if (m := _printed(group, v)) is not None
        }
        for study in studies
    }
    return {study: of_study for study, of_study in found.items() if of_study}


def _printed(group: Group, variant: Variant) -> float | None:
    found = _finite(variant.test(group.score))
    return None if found is None else float(metric_text(group.metric, found.mean))


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
