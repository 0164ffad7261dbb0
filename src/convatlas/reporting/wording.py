"""How values are written: units, digits, lists of words."""

from __future__ import annotations

import math

from convatlas.core.metrics import Metric
from convatlas.core.statistics import Spread

DASH = "–"
PLUS_MINUS = "±"
THIN_SPACE = "\u202f"

NOT_FINITE = "not finite"


def metric_text(metric: Metric, value: float | None) -> str:
    """Write a value of a metric: two decimals of percent, four of anything else; no unit."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{value * metric.factor:.2f}" if metric.is_share else f"{value:.4f}"


def spread_text(metric: Metric, found: Spread | None) -> str:
    """Write mean and standard deviation, `98.61 ± 0.12 %`; the mean alone for a single value."""
    text = metric_text(metric, found.mean if found else None)
    if found is None or not found.is_finite:
        return text
    text += f" {PLUS_MINUS} {metric_text(metric, found.std)}" if found.std is not None else ""
    return text + (f"{THIN_SPACE}{metric.unit}" if metric.unit else "")


def with_prefix(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits and k, M, G or T behind it: 272474 becomes `272 k`."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return NOT_FINITE
    power = 0
    while abs(_significant(value / 1000**power, digits)) >= 1000 and power < 4:
        power += 1
    if power == 0 and value == int(value):
        return f"{value:.0f}"
    text = _plain(value / 1000**power, digits)
    return text if power == 0 else f"{text}{THIN_SPACE}{'kMGT'[power - 1]}"


def megabytes(value: float | None) -> str:
    """Write 10^6 bytes with three significant digits."""
    return DASH if value is None else _plain(value, 3)


def duration(seconds: float | None) -> str:
    """Write a time: `3.21 ms`, `45.2 s`, `12 min 5 s`, `20 h 42 min`."""
    if seconds is None:
        return DASH
    if not math.isfinite(seconds):
        return NOT_FINITE
    if seconds < 0.9995:
        return f"{_plain(seconds * 1e3, 3)}{THIN_SPACE}ms"
    if seconds < 99.95:
        return f"{_plain(seconds, 3)}{THIN_SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN_SPACE}min {whole % 60}{THIN_SPACE}s"
    return f"{round(whole / 60) // 60}{THIN_SPACE}h {round(whole / 60) % 60}{THIN_SPACE}min"


def count(number: int, noun: str) -> str:
    """Write `1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: list[str]) -> str:
    """Write `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _plain(value: float, digits: int) -> str:
    """Write a number to so many significant digits without an exponent; whole digits are never cut off."""
    if value == 0:
        return "0"
    rounded = _significant(value, digits)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{decimals}f}" if abs(rounded) < 1000 else f"{value:,.0f}"
