"""The few statistics that the report needs, and no more certainty than a handful of seeds gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Figures of one variant over its seeds.

    Attributes:
        mean: their mean; NaN where one of them is not finite.
        deviation: their sample standard deviation (n-1 in the denominator); None for a single one.
        n: how many there are.
        low: the smallest.
        high: the largest.
    """

    mean: float
    deviation: float | None
    n: int
    low: float
    high: float

    @property
    def squared_error(self) -> float:
        """The squared standard error of the mean; NaN for a single figure, of which no error is known."""
        return math.nan if self.deviation is None else self.deviation**2 / self.n


def spread(values: Iterable[float | None]) -> Spread | None:
    """Sum up the figures that are there; None where there are none.

    One figure that is not finite makes the mean and the deviation NaN: a variant of which one seed diverged has no
    mean, and leaving that seed out would flatter it.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    if not all(math.isfinite(value) for value in present):
        return Spread(math.nan, math.nan, len(present), math.nan, math.nan)
    n, low, high = len(present), min(present), max(present)
    mean = math.fsum(present) / n if low < high else low  # equal figures have no rounding error and no deviation
    squares = math.fsum((value - mean) ** 2 for value in present)
    return Spread(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n, low, high)


def as_good(best: Spread, other: Spread) -> bool:
    """Say whether `other` lies within two standard errors of the difference from `best`.

    With three seeds that is a rough guide, no test; it keeps a table from praising noise. A single seed has no
    standard error and is never as good.
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
