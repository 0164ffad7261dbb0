"""What the runs of the plan say of each net: scores with intervals, curves, and differences of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from convatlas.atlas.appearances import net_among
from convatlas.core.metrics import Metric
from convatlas.reporting.paired import compare_two
from convatlas.reporting.statistics import estimate
from convatlas.reporting.study import Group, SeedRun, Study, Variant
from convatlas.reporting.wording import DASH, metric_text, spread_text
from convatlas.studies.claims import Quantity

__all__ = ["Comparison", "Result", "comparisons", "net_of", "results_of"]


def net_of(variant: Variant) -> str | None:
    """Return the net of `conf/model` that a variant trains; None for one that it does not name."""
    return net_among(variant.overrides)


@dataclass(frozen=True)
class Result:
    """A finished variant of a study."""

    study: Study
    group: Group
    variant: Variant

    @property
    def net(self) -> str:
        """Its net."""
        return net_of(self.variant) or ""

    @property
    def score(self) -> str:
        """Mean and standard deviation over the seeds."""
        return spread_text(self.group.metric, self.variant.test(self.group.score))

    @cached_property
    def interval(self) -> str:
        """The 95 % interval of the mean over other seeds and other test images; a dash for a single seed."""
        runs = [run for run in self.variant.runs if run.seed in self.variant.finite_tests(self.group.score)]
        values = [run.test(self.group.score) or 0.0 for run in runs]
        if len(values) < 2:
            return DASH
        metric = self.group.metric
        parts = [run.parts(Quantity(self.group.score, "")) for run in runs]
        same = [each.values for each in parts if each is not None and np.array_equal(each.images, parts[0].images)]  # type: ignore[union-attr]
        prior = self.group.prior(self.group.score) if metric.is_share else None
        low, high = estimate(values, np.array(same) if len(same) == len(runs) else None, prior).interval()
        ends = (max(low, 0.0), min(high, 1.0)) if metric.is_share else (low, high)
        return " to ".join(metric_text(metric, end) for end in ends)

    @property
    def median_run(self) -> SeedRun | None:
        """The run with the median score."""
        return self.variant.median_run(self.group.score)


def results_of(studies: Iterable[Study]) -> dict[str, list[Result]]:
    """Return the finished variants of every net, in the order of the studies."""
    found: dict[str, list[Result]] = {}
    for study in studies:
        for group in study.groups:
            for variant in group.variants:
                net = net_of(variant)
                if net and variant.runs:
                    found.setdefault(net, []).append(Result(study, group, variant))
    return found


@dataclass(frozen=True)
class Comparison:
    """A group of a study as plain values for a page that compares nets: see `plain`."""

    study: Study
    group: Group

    @property
    def plain(self) -> dict[str, Any]:
        """Its variants with score and curve, and the difference of each pair with its interval.

        Differences are by `first second`, the numbers of two variants, of the second less the first:
        `[difference, low, high]` in the unit of the score, the ends null for a single seed.
        """
        metric, variants = self.group.metric, [v for v in self.group.variants if v.runs and net_of(v)]
        shown = [
            {
                "net": net_of(variant),
                "title": variant.title,
                "score": spread_text(metric, variant.test(self.group.score)),
                "interval": Result(self.study, self.group, variant).interval,
                "seeds": len(variant.runs),
                "curve": [_short(metric, math.fsum(values) / len(values)) for _, values in self._curve(variant)],
                "epochs": [epoch for epoch, _ in self._curve(variant)],
            }
            for variant in variants
        ]
        return {
            "study": self.study.name,
            "title": f"{self.study.title}: {self.group.task} on {self.group.data}",
            "metric": metric.axis,
            "digits": 2 if metric.is_share else 4,
            "variants": shown,
            "pairs": dict(self._pairs(variants)),
        }

    def _curve(self, variant: Variant) -> list[tuple[int, list[float]]]:
        return list(variant.curve(f"val/{self.group.score}", 40))

    def _pairs(self, variants: Sequence[Variant]) -> Iterable[tuple[str, list[float | None]]]:
        for (one, first), (other, second) in combinations(enumerate(variants), 2):
            pair = compare_two(self.group, second, first)
            if pair.difference is not None and math.isfinite(pair.difference):
                ends = pair.interval or (None, None)
                numbers = [pair.difference, *ends]
                finite = [None if n is None or not math.isfinite(n) else _short(pair.metric, n) for n in numbers]
                yield f"{one} {other}", finite


def _short(metric: Metric, value: float) -> float:
    return round(value * metric.factor, 3 if metric.is_share else 5)


def comparisons(studies: Iterable[Study]) -> list[Comparison]:
    """Return the groups in which at least two variants have finished."""
    groups = (Comparison(study, group) for study in studies for group in study.groups)
    return [each for each in groups if sum(bool(v.runs and net_of(v)) for v in each.group.variants) > 1]
