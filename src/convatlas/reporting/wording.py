"""How figures and names are written: units, digits, and what a metric is called."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from convatlas.reporting.statistics import Spread

DASH = "–"
PLUS_MINUS = "±"
THIN_SPACE = "\u202f"

# Shares between 0 and 1, written in percent. `map` and `mar` are detection's mean average precision and recall.
_SHARES = re.compile(r"^(accuracy|f1|calibration_error|precision|recall|map|mar|dice|iou|edge_dice)(_|$)")
_FALLING = re.compile(r"(loss|error|distance|hausdorff)")
_NAMES = {
    "accuracy": "accuracy",
    "accuracy_top5": "top-5 accuracy",
    "f1_macro": "macro F1",
    "calibration_error": "calibration error",
    "map": "mAP@[.5:.95]",
    "map_50": "mAP@.5",
    "map_75": "mAP@.75",
    "dice": "Dice",
    "iou": "IoU",
    "edge_dice": "Dice of the edges",
}


@dataclass(frozen=True)
class Metric:
    """How one metric is named and written.

    Attributes:
        name: its key in `metrics.json`, for example `accuracy`.
    """

    name: str

    @property
    def title(self) -> str:
        """Its name for people, for example `macro F1`."""
        if self.name in _NAMES:
            return _NAMES[self.name]
        head, _, rest = self.name.partition("_")
        known = {"dice": "Dice", "iou": "IoU", "map": "mAP", "mar": "mAR"}
        if head == "hausdorff":
            unit, _, area = rest.partition("_")
            return f"Hausdorff distance in {unit}" + (f", {spoken(area)}" if area else "")
        return f"{known[head]}, {spoken(rest)}" if head in known and rest else spoken(self.name)

    @property
    def unit(self) -> str:
        """`%` or nothing."""
        return "%" if _SHARES.match(self.name) else ""

    @property
    def axis(self) -> str:
        """Title and unit, as an axis or a column has it."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be written."""
        return 100.0 if self.unit else 1.0

    @property
    def lower_is_better(self) -> bool:
        """Whether less of it is better."""
        return bool(_FALLING.search(self.name))

    def text(self, value: float | None) -> str:
        """Write a value: two decimals of percent, four of anything else; no unit."""
        if value is None:
            return DASH
        if not math.isfinite(value):
            return "not finite"
        return f"{value * self.factor:.2f}" if self.unit else f"{value:.4f}"

    def spread_text(self, found: Spread | None) -> str:
        """Write mean and standard deviation, `98.61 ± 0.12 %`; no deviation where there is one figure."""
        if found is None:
            return DASH
        text = self.text(found.mean)
        if math.isfinite(found.mean):
            text += f" {PLUS_MINUS} {self.text(found.deviation)}" if found.deviation is not None else ""
            text += f"{THIN_SPACE}{self.unit}" if self.unit else ""
        return text


def spoken(name: str) -> str:
    """Turn a key into words: `test_error` becomes `test error`."""
    return name.replace("_", " ").replace("/", " ").strip()


def with_prefix(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits and k, M, G or T behind it: 272474 becomes `272 k`."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
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
    """Write a time for people: `3.21 ms`, `45.2 s`, `12 min 5 s`, `20 h 42 min`."""
    if seconds is None:
        return DASH
    if not math.isfinite(seconds):
        return "not finite"
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
