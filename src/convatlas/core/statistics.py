"""Mean and standard deviation over the seeds of a variant: the one calculator that all others use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Spread", "spread"]


@dataclass(frozen=True)
class Spread:
    """Values of one variant over its seeds.

    Attributes:
        mean: their mean; NaN where one of them is not finite.
        std: their sample standard deviation (n-1 in the denominator); None for a single one.
        n: how many there are.
        low: the smallest.
        high: the largest.
    """

    mean: float
    std: float | None
    n: int
    low: float
    high: float

    @property
    def is_finite(self) -> bool:
        """Whether every value is."""
        return math.isfinite(self.mean)

    @property
    def squared_error(self) -> float:
        """The squared standard error of the mean; NaN for a single value, of which no error is known."""
        return math.nan if self.std is None else self.std**2 / self.n


def spread(values: Iterable[float | None]) -> Spread | None:
    """Sum up the values that were measured (None was not); None where there are none.

    One value that is not finite makes mean and standard deviation NaN: a variant of which one seed diverged has no
    mean, and leaving that seed out would flatter it.
    """
    present = [value for value in values if value is not None]
    if not present:
        return None
    if not all(math.isfinite(value) for value in present):
        return Spread(math.nan, math.nan, len(present), math.nan, math.nan)
    n, low, high = len(present), min(present), max(present)
    mean = math.fsum(present) / n if low < high else low  # equal values have no rounding error and no deviation
    squares = math.fsum((value - mean) ** 2 for value in present)
    return Spread(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n, low, high)
