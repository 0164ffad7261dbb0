"""A study's results as tables: for the page, as CSV for programs, and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from convatlas.reporting.paired import Pair, compare, reference_of
from convatlas.reporting.results import Group, Study
from convatlas.reporting.statistics import Spread, as_good, spread
from convatlas.reporting.variants import SeedRun, Variant, measured
from convatlas.reporting.wording import DASH, Metric, duration, megabytes, with_prefix

COSTS = ("parameters", "macs", "macs_inference", "weight_megabytes", "activation_bytes", "batch_size")
_PAIR = ("against", "difference", "difference_low", "difference_high", "only_this_right", "only_reference_right")
TIMES = ("train_seconds", "test_seconds", "latency_seconds")

Written = Callable[[float | None], str]


@dataclass(frozen=True)
class Cell:
    """One figure of the table.

    Attributes:
        text: what is shown.
        deviation: the standard deviation behind it, or nothing.
        order: what the column is sorted by; None sorts last.
        exact: the figure in full where the text is rounded, or nothing.
        leading: whether it is the column's best, or as good within its noise.
    """

    text: str
    deviation: str = ""
    order: float | None = None
    exact: str = ""
    leading: bool = False


@dataclass(frozen=True)
class Column:
    """One column: its title, what it means, and a cell for each variant."""

    section: str
    title: str
    meaning: str
    cells: tuple[Cell, ...]
    lower_first: bool = True


@dataclass(frozen=True)
class Table:
    """Columns over the variants of one group."""

    columns: tuple[Column, ...]

    @cached_property
    def sections(self) -> list[tuple[str, int]]:
        """The titles that span several columns, with how many each spans."""
        names = list(dict.fromkeys(column.section for column in self.columns))
        return [(name, sum(column.section == name for column in self.columns)) for name in names]

    def row(self, number: int) -> list[Cell]:
        """The cells of one variant."""
        return [column.cells[number] for column in self.columns]


def over_seeds(variant: Variant, value: Callable[[SeedRun], float | None]) -> Spread | None:
    """Sum up a figure of each finished run of a variant."""
    return spread(value(run) for run in variant.runs)


def tested(variant: Variant, metric: str) -> Spread | None:
    """Sum up a test metric over the seeds of a variant."""
    return over_seeds(variant, lambda run: run.test(metric))


def timed(variant: Variant, name: str) -> Spread | None:
    """Sum up a time of `timing.json` over the seeds of a variant."""
    return over_seeds(variant, lambda run: run.seconds(name))


def cost(variant: Variant, name: str) -> float | None:
    """Return a cost of a variant's net: the same for all its seeds, so that of the first."""
    return next((found for run in variant.runs if (found := run.cost(name)) is not None), None)


def macs(variant: Variant) -> float | None:
    """Return the multiply-adds of one image at inference; of the whole net where only those were counted."""
    at_inference = cost(variant, "macs_inference")
    return at_inference if at_inference is not None else cost(variant, "macs")


# ---- for the page ---------------------------------------------------------------------------------------------------


def main_table(group: Group) -> Table:
    """The comparison: test score, validation, costs and times."""
    score = [*_test_columns(group, [group.score]), *_points_columns(group)]
    return Table((*score, *_validation_columns(group), *_cost_columns(group), *_time_columns(group)))


def further_table(group: Group) -> Table:
    """The other test metrics, for which the main table has no room."""
    return Table(tuple(_test_columns(group, group.test_metrics[1:])))


def _test_columns(group: Group, metrics: Sequence[str]) -> list[Column]:
    return [_metric_column(group, Metric(name), _test_value(name), "on the test split") for name in metrics]


def _validation_columns(group: Group) -> list[Column]:
    metric = Metric(group.score)
    columns = []
    for moment in ("best", "last"):
        title = f"at {moment} epoch, {metric.unit}" if metric.unit else f"at {moment} epoch"
        meaning = f"{metric.title} on the validation split"
        column = _metric_column(group, metric, _validation_value(group, moment), meaning)
        columns.append(replace(column, section="Validation", title=title))
    epochs = (over_seeds(variant, lambda run: run.metrics.get("best_epoch")) for variant in group.variants)
    return [*columns, Column("Validation", "best epoch", "mean over the seeds", tuple(map(_epoch_cell, epochs)))]


def _points_columns(group: Group) -> list[Column]:
    """Return the points that a course gives for a metric, where the study names one that these runs have."""
    grading = group.grading
    if grading is None or grading.metric not in group.test_metrics:
        return []
    metric = Metric(grading.metric)
    (least, most), (last, fewest) = grading.points[0], grading.points[-1]
    meaning = (
        f"{most:g} from {metric.text(least)}{metric.unit} {metric.title} on the test split, "
        f"{fewest:g} from {metric.text(last)}{metric.unit}, none below"
    )
    found = [over_seeds(variant, grading.of) for variant in group.variants]
    cells = (Cell(DASH) if each is None else _points_cell(each) for each in found)
    return [Column("Test", f"points for {metric.title}", meaning, tuple(cells), lower_first=False)]


def _points_cell(found: Spread) -> Cell:
    deviation = "" if found.deviation is None else f"{found.deviation:.1f}"
    return Cell(f"{found.mean:.1f}", deviation, found.mean)


def _test_value(name: str) -> Callable[[SeedRun], float | None]:
    return lambda run: run.test(name)


def _validation_value(group: Group, moment: str) -> Callable[[SeedRun], float | None]:
    return lambda run: measured(group.score, run.metrics.get(moment, {}).get(f"val/{group.score}"))


def _metric_column(group: Group, metric: Metric, value: Callable[[SeedRun], float | None], meaning: str) -> Column:
    found = [over_seeds(variant, value) for variant in group.variants]
    leading = leaders(found, lower_is_better=metric.lower_is_better)
    cells = tuple(_metric_cell(metric, each, leads=leads) for each, leads in zip(found, leading, strict=True))
    return Column("Test", metric.axis, meaning, cells, lower_first=metric.lower_is_better)


def _metric_cell(metric: Metric, found: Spread | None, *, leads: bool) -> Cell:
    if found is None or not math.isfinite(found.mean):
        return Cell(metric.text(found.mean if found else None))
    deviation = "" if found.deviation is None else metric.text(found.deviation)
    return Cell(metric.text(found.mean), deviation, found.mean, leading=leads)


def leaders(found: Sequence[Spread | None], *, lower_is_better: bool = False) -> list[bool]:
    """Mark the best of several means, and those that noise alone could set apart from it (see `as_good`)."""
    finite = [each for each in found if each is not None and math.isfinite(each.mean)]
    if len(finite) < 2:
        return [False] * len(found)
    choose = min if lower_is_better else max
    best = choose(finite, key=lambda each: each.mean)
    return [each is not None and (each.mean == best.mean or as_good(best, each)) for each in found]


def _epoch_cell(epoch: Spread | None) -> Cell:
    return Cell(DASH) if epoch is None else Cell(f"{epoch.mean:.1f}".removesuffix(".0"), order=epoch.mean)


def _cost_columns(group: Group) -> list[Column]:
    batches = sorted({int(size) for variant in group.variants if (size := cost(variant, "batch_size")) is not None})
    batch = f" at batch {batches[0]}" if len(batches) == 1 else ""

    def column(title: str, meaning: str, value: Callable[[Variant], float | None], text: Written) -> Column:
        cells = (_cost_cell(value(variant), text) for variant in group.variants)
        return Column("Cost", title, meaning, tuple(cells))

    def named(name: str) -> Callable[[Variant], float | None]:
        return lambda variant: cost(variant, name)

    def saved(variant: Variant) -> float | None:
        saved_bytes = cost(variant, "activation_bytes")
        return None if saved_bytes is None else saved_bytes / 1e6

    columns = [
        column("parameters", "trainable values", named("parameters"), with_prefix),
        column("MACs", "multiply-adds of one image at inference", macs, with_prefix),
        column("weights, MB", "parameters and buffers as they are stored", named("weight_megabytes"), megabytes),
        column(f"saved for backward, MB{batch}", "what one training step keeps", saved, megabytes),
    ]
    if len(batches) > 1:
        columns.append(column("batch", "the batch of the column before", named("batch_size"), with_prefix))
    return columns


def _cost_cell(value: float | None, text: Written) -> Cell:
    exact = f"{value:,.0f}" if value is not None and value > 999 else ""
    return Cell(text(value), order=value, exact=exact)


def _time_columns(group: Group) -> list[Column]:
    def column(title: str, meaning: str, name: str) -> Column:
        found = [timed(variant, name) for variant in group.variants]
        cells = (Cell(duration(each.mean), order=each.mean) if each else Cell(DASH) for each in found)
        return Column("Time", title, meaning, tuple(cells))

    return [
        column("training", "the training steps of one run, mean over the seeds", "train_seconds"),
        column("latency", "one inference of one image, mean over the seeds", "latency_seconds"),
    ]


# ---- for programs ---------------------------------------------------------------------------------------------------


def records(study: Study) -> list[dict[str, Any]]:
    """Return one record a variant with machine-readable names; a figure that is missing is None."""
    found = []
    for group in study.groups:
        pairs = {pair.variant.key: _pair_record(pair, reference_of(group)) for pair in compare(group)}
        without = dict.fromkeys(_PAIR)
        found += [_record(study, group, variant) | pairs.get(variant.key, without) for variant in group.variants]
    return found


def _record(study: Study, group: Group, variant: Variant) -> dict[str, Any]:
    record: dict[str, Any] = {
        "study": study.name,
        "variant": variant.key,
        "title": variant.title,
        "task": variant.task,
        "data": variant.data,
        "seeds_planned": len(variant.seeds),
        "seeds_finished": len(variant.runs),
        "seeds_failed": len(variant.failures),
        "score": group.score,
    }
    for metric in group.test_metrics:
        record |= _mean_and_std(f"test_{metric}", tested(variant, metric))
    if group.grading is not None:
        record |= _mean_and_std("points", over_seeds(variant, group.grading.of))
    for moment in ("best", "last"):
        found = over_seeds(variant, _validation_value(group, moment))
        record |= _mean_and_std(f"val_{group.score}_{moment}_epoch", found)
    record |= _mean_and_std("best_epoch", over_seeds(variant, lambda run: run.metrics.get("best_epoch")))
    record |= {name: cost(variant, name) for name in COSTS}
    for name in TIMES:
        record |= _mean_and_std(name, timed(variant, name))
    return record


def _pair_record(pair: Pair, reference: Variant | None) -> dict[str, Any]:
    low, high = pair.interval or (None, None)
    against = reference.key if reference is not None and pair.seeds else None
    return dict(zip(_PAIR, (against, pair.difference, low, high, pair.only_variant, pair.only_reference), strict=True))


def _mean_and_std(name: str, found: Spread | None) -> dict[str, float | None]:
    return {f"{name}_mean": found.mean if found else None, f"{name}_std": found.deviation if found else None}


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write records as CSV: ten significant digits, whole numbers whole, nothing where a figure is missing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_value(row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def _csv_value(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.10g}"
    return "" if value is None else str(value)
