"""A strip for each row of the table: every seed's score as a dot on a scale that all rows share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convatlas.reporting.results import Group
from convatlas.reporting.tables import tested
from convatlas.reporting.variants import Variant
from convatlas.reporting.wording import Metric

WIDTH, MARGIN = 112, 6
"""Pixels of a whole strip, and of the room for half a dot at its ends; the template has the same."""


@dataclass(frozen=True)
class Strip:
    """The dots of one variant.

    Attributes:
        dots: where each seed's score lies, in pixels from the left.
        mean: where the mean lies; None without a finite score.
        label: the scores in words.
    """

    dots: tuple[float, ...]
    mean: float | None
    label: str


def strips(group: Group) -> tuple[list[Strip], tuple[str, str]]:
    """Return a strip for each variant, and the scores at both ends of the scale."""
    metric = Metric(group.score)
    scores = {variant.key: _finite_scores(variant, group.score) for variant in group.variants}
    everything = [score for found in scores.values() for score in found]
    low, high = (min(everything), max(everything)) if everything else (0.0, 0.0)

    def place(score: float) -> float:
        share = (score - low) / (high - low) if high > low else 0.5
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    def strip(variant: Variant) -> Strip:
        found = tested(variant, group.score)
        mean = place(found.mean) if found and math.isfinite(found.mean) else None
        dots = tuple(place(score) for score in scores[variant.key])
        told = (f"seed {run.seed}: {metric.text(run.test(group.score))}" for run in variant.runs)
        return Strip(dots, mean, f"{metric.axis}; {'; '.join(told) or 'no result'}")

    ends = (metric.text(low), metric.text(high)) if everything else ("", "")
    return [strip(variant) for variant in group.variants], ends


def _finite_scores(variant: Variant, score: str) -> list[float]:
    found = (run.test(score) for run in variant.runs)
    return [value for value in found if value is not None and math.isfinite(value)]
