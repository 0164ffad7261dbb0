"""The table of metrics: what each is called, its unit, and whether more or less of it is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["SCORES", "Direction", "Metric", "as_words", "direction", "measured", "metric"]

Direction = Literal["max", "min"]

SCORES: Mapping[str, Sequence[str]] = {
    "classification": ("accuracy",),
    "detection": ("map_50", "map"),
    "segmentation": ("dice", "iou"),
}
"""The test metric that stands for a task, first choice first; any other task is judged by what it monitors."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: its key in `metrics.json`, for example `f1_macro`.
        title: its name in a table, for example `macro F1`.
        direction: whether the highest or the lowest value is the best; None where that is not known.
        is_share: it lies between 0 and 1 and is written in percent.
    """

    name: str
    title: str
    direction: Direction | None = None
    is_share: bool = False

    @property
    def unit(self) -> str:
        """`%` or nothing."""
        return "%" if self.is_share else ""

    @property
    def axis(self) -> str:
        """Title and unit, as an axis or a column has it."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be written."""
        return 100.0 if self.is_share else 1.0

    @property
    def sign(self) -> int:
        """1 where the highest value is the best or that is not known, -1 where the lowest is."""
        return -1 if self.direction == "min" else 1


def _share(name: str, title: str, direction: Direction = "max") -> Metric:
    return Metric(name, title, direction, is_share=True)


_TABLE = {
    entry.name: entry
    for entry in (
        Metric("loss", "loss", "min"),
        _share("accuracy", "accuracy"),
        _share("accuracy_top5", "top-5 accuracy"),
        _share("precision", "precision"),
        _share("recall", "recall"),
        _share("f1", "F1"),
        _share("f1_macro", "macro F1"),
        _share("calibration_error", "calibration error", "min"),
        _share("map", "mAP@[.5:.95]"),
        _share("map_50", "mAP@.5"),
        _share("map_75", "mAP@.75"),
        _share("mar", "mAR"),
        _share("dice", "Dice"),
        _share("iou", "IoU"),
        _share("edge_dice", "Dice of the edges"),
        Metric("hausdorff_px", "Hausdorff distance in px", "min"),
        Metric("hausdorff_mm", "Hausdorff distance in mm", "min"),
    )
}
_FAMILY_TITLES = {"map": "mAP"}
"""What `map_<class>` is called before its class, where the title of `map` does not do."""
_FALLING_WORDS = {"loss", "error", "distance"}


def metric(name: str, own: Any = None) -> Metric:
    """Look a metric up, a single class or area (`dice_liver`) by its family; any other is called by its own words.

    Args:
        name: its name, with or without `train/`, `val/` or `test/`.
        own: the torchmetrics metric of that name; its `higher_is_better` counts for one that is not in the table.
    """
    name = name.rpartition("/")[2]
    if name in _TABLE:
        return _TABLE[name]
    family = max((known for known in _TABLE if name.startswith(f"{known}_")), key=len, default=None)
    if family is not None:
        head, rest = _TABLE[family], as_words(name[len(family) + 1 :])
        return Metric(name, f"{_FAMILY_TITLES.get(family, head.title)}, {rest}", head.direction, head.is_share)
    higher = getattr(own, "higher_is_better", None)
    if higher is None:
        return Metric(name, as_words(name), "min" if _FALLING_WORDS & set(name.split("_")) else None)
    return Metric(name, as_words(name), "max" if higher else "min")


def direction(name: str, own: Any = None) -> Direction | None:
    """Say whether the highest or the lowest value of a metric is the best; None where that is not known.

    Takes what `metric` takes.
    """
    return metric(name, own).direction


def measured(name: str, value: float | None) -> float | None:
    """Return a value as a number; None where there is none.

    NaN stays: a run that diverged must be seen. Detection's -1 means that no object of that kind was there to find
    (the COCO convention), which is no result.
    """
    if value is None or (value == -1 and name.startswith(("map", "mar"))):
        return None
    return float(value)


def as_words(name: str) -> str:
    """Turn a key into words: `test_error` becomes `test error`."""
    return name.replace("_", " ").replace("/", " ").strip()
