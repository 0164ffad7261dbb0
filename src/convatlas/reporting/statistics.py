"""The few statistics that a report needs beside mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convatlas.core.statistics import Spread, spread

CONFIDENCE = 0.95

Interval = tuple[float, float]


def interval(values: Sequence[float]) -> Interval:
    """Return Student's 95 % interval of the mean of independent values; everything where there is one value alone."""
    found = spread(values)
    assert found is not None
    if found.std is None or not found.is_finite:
        return -math.inf, math.inf
    reach = quantile(found.n - 1) * math.sqrt(found.squared_error)
    return found.mean - reach, found.mean + reach


def has_width(low: float, high: float) -> bool:
    """Say whether an interval is wider than rounding errors; one that is not says nothing of a measured value."""
    return not math.isclose(low, high, rel_tol=1e-6, abs_tol=1e-12)


def quantile(freedom: float) -> float:
    """Return how many standard errors Student's 95 % interval reaches to each side."""
    from scipy.special import stdtrit  # half a second faster to import than scipy.stats

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def not_significantly_worse(best: Spread, other: Spread) -> bool:
    """Say whether `other` lies within two standard errors of the difference from `best`.

    With three seeds that is a rough guide, no test; it keeps a table from praising noise. A single seed has no
    standard error and never counts.
    """
    difference = abs(best.mean - other.mean)
    return difference <= 2 * math.sqrt(best.squared_error + other.squared_error)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say for each `(cost, score)` whether no other point is at least as good in both and better in one."""
    order = sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1]))
    on_front = [False] * len(points)
    best, best_cost = -math.inf, math.nan
    for number in order:
        cost, score = points[number]
        on_front[number] = score > best or (score == best and cost == best_cost)
        if score > best:
            best, best_cost = score, cost
    return on_front


def sampling_error(share: float, images: int) -> float:
    """Return the standard error of a share of right answers on so many independent test images (binomial)."""
    return math.sqrt(share * (1 - share) / images)
