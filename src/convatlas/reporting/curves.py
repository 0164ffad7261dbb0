"""The learning curves of a variant's seeds, brought together epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

from convatlas.reporting.variants import Variant

CURVE_POINTS = 60
"""Epochs kept of a curve; a longer one is thinned evenly."""


def over_epochs(variant: Variant, column: str, limit: int = CURVE_POINTS) -> Iterable[tuple[int, list[float]]]:
    """Give the values of all seeds for each epoch that all of them reached, thinned to `limit` epochs."""
    curves = [run.history[column] for run in variant.runs if column in run.history]
    length = min(map(len, curves), default=0)
    for index in thinned(length, limit):
        values = [curve[index] for curve in curves]
        if all(map(math.isfinite, values)):
            yield index + 1, values


def thinned(length: int, limit: int) -> list[int]:
    """Return at most `limit` whole numbers from 0 to `length - 1`, evenly spaced, both ends among them."""
    if length <= limit:
        return list(range(length))
    return sorted({round(n * (length - 1) / (limit - 1)) for n in range(limit)})
