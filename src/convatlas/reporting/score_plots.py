"""Small plots within the cells of a table: each seed's score, and each difference with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from convatlas.reporting.paired import Pair, interval_text, signed
from convatlas.reporting.statistics import Interval
from convatlas.reporting.study import Group, Variant
from convatlas.reporting.wording import count, metric_text

SCORES_WIDTH, INTERVALS_WIDTH, MARGIN = 112, 132, 6
"""Pixels of a plot, and of the room for half a dot at its ends; the template has the same."""
REACH = 3


@dataclass(frozen=True)
class Scale:
    """A scale that all rows of a table share."""

    low: float
    high: float
    width: int

    def place(self, value: float) -> float:
        """Return where a value lies, in pixels from the left; beyond the scale, at its end."""
        share = (
            (min(max(value, self.low), self.high) - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        )
        return round(MARGIN + share * (self.width - 2 * MARGIN), 1)


@dataclass(frozen=True)
class ScorePlot:
    """The scores of one variant: a dot for each seed, their mean (None without a finite score), and both in words."""

    dots: tuple[float, ...]
    mean: float | None
    label: str


@dataclass(frozen=True)
class IntervalPlot:
    """A difference with its interval; None where there is none.

    Attributes:
        zero: where no difference lies, in pixels from the left.
        mean: where the difference lies.
        low, high: the ends of the interval, or of the scale where the interval goes on beyond it.
        cut: which ends go on, of "low" and "high".
        label: the same in words.
    """

    zero: float
    mean: float | None
    low: float | None
    high: float | None
    cut: tuple[str, ...]
    label: str


def score_plots(group: Group) -> tuple[list[ScorePlot], tuple[str, str]]:
    """Return the plot of each variant, and the scores at both ends of the scale."""
    metric = group.metric
    scores = [list(variant.finite_tests(group.score).values()) for variant in group.variants]
    every = [score for found in scores for score in found]
    scale = Scale(min(every, default=0.0), max(every, default=0.0), SCORES_WIDTH)

    def plot(variant: Variant, found: list[float]) -> ScorePlot:
        mean = variant.test(group.score)
        words = (f"seed {run.seed}: {metric_text(metric, run.test(group.score))}" for run in variant.runs)
        return ScorePlot(
            tuple(map(scale.place, found)),
            scale.place(mean.mean) if mean and mean.is_finite else None,
            f"{metric.axis}; {'; '.join(words) or 'no result'}",
        )

    ends = (metric_text(metric, scale.low), metric_text(metric, scale.high)) if every else ("", "")
    return [plot(*pair) for pair in zip(group.variants, scores, strict=True)], ends


def interval_plots(pairs: Sequence[Pair]) -> tuple[list[IntervalPlot], Interval]:
    """Place every pair on one scale that has zero on it; return them with the ends of the scale.

    The scale ends at most `REACH` typical half intervals beyond the differences: one variant whose seeds disagree would
    else press all others into a point.
    """
    differences = [0.0, *(pair.difference for pair in pairs if pair.difference is not None)]
    intervals = [pair.interval for pair in pairs if pair.interval]
    room = REACH * median((high - low) / 2 for low, high in intervals) if intervals else 0.0
    low = max(min(differences) - room, min([*differences, *(low for low, _ in intervals)]))
    high = min(max(differences) + room, max([*differences, *(high for _, high in intervals)]))
    scale = Scale(low, high, INTERVALS_WIDTH)

    def plot(pair: Pair) -> IntervalPlot:
        mean = None if pair.difference is None else scale.place(pair.difference)
        if pair.interval is None:
            return IntervalPlot(scale.place(0.0), mean, None, None, (), in_words(pair))
        start, end = pair.interval
        cut = tuple(side for side, is_cut in (("low", start < low), ("high", end > high)) if is_cut)
        return IntervalPlot(scale.place(0.0), mean, scale.place(start), scale.place(end), cut, in_words(pair))

    return [plot(pair) for pair in pairs], (low, high)


def in_words(pair: Pair) -> str:
    """Write a difference with its interval and its seeds."""
    if pair.difference is None:
        return "no common seed"
    text = f"difference {signed(pair.difference, pair.metric)}"
    if pair.interval is not None:
        text += f", 95 % interval {interval_text(pair)}"
    return f"{text}, {count(pair.seeds, 'common seed')}"
