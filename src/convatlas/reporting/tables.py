"""A study's results as tables: for the page, and as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from convatlas.core.metrics import Metric, metric
from convatlas.core.record import PARTS
from convatlas.core.statistics import Spread
from convatlas.reporting.paired import Pair, compare, reference_of
from convatlas.reporting.statistics import not_significantly_worse
from convatlas.reporting.study import COSTS, TIMES, Group, SeedRun, Study, Variant
from convatlas.reporting.wording import DASH, duration, megabytes, metric_text, with_prefix

CSV_COSTS = tuple(name for name in COSTS if name != "macs_of_weights")
_PAIR = ("against", "difference", "difference_low", "difference_high", "only_this_right", "only_reference_right")

OfRun = Callable[[SeedRun], float | None]
OfVariant = Callable[[Variant], float | None]


@dataclass(frozen=True)
class Cell:
    """One value of the table.

    Attributes:
        text: what is shown.
        std: the standard deviation behind it, or nothing.
        order: what the column is sorted by; None sorts last.
        exact: the value in full where the text is rounded, or nothing.
        leading: whether it is the column's best, or not significantly worse.
    """

    text: str
    std: str = ""
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
        """Return the cells of one variant."""
        return [column.cells[number] for column in self.columns]


# ---- for the page ----------------------------------------------------------------------------------------------------


def main_table(group: Group) -> Table:
    """Return the comparison: test score, validation, costs and times."""
    test = [_test_column(group, group.metric), *_points_columns(group)]
    return Table((*test, *_validation_columns(group), *_cost_columns(group), *_time_columns(group)))


def further_table(group: Group) -> Table:
    """Return the other test metrics, for which the main table has no room."""
    return Table(tuple(_test_column(group, metric(name)) for name in group.test_metrics[1:]))


def _test_column(group: Group, shown: Metric) -> Column:
    return _metric_column(group, shown, lambda run: run.test(shown.name), "on the test split")


def _metric_column(group: Group, shown: Metric, value: OfRun, meaning: str) -> Column:
    found = [variant.over_seeds(value) for variant in group.variants]
    pairs = zip(found, leaders(found, shown), strict=True)
    return Column("Test", shown.axis, meaning, tuple(_metric_cell(shown, *pair) for pair in pairs), shown.sign < 0)


def _metric_cell(shown: Metric, found: Spread | None, leads: bool) -> Cell:
    if found is None or not found.is_finite:
        return Cell(metric_text(shown, found.mean if found else None))
    std = "" if found.std is None else metric_text(shown, found.std)
    return Cell(metric_text(shown, found.mean), std, found.mean, leading=leads)


def leaders(found: Sequence[Spread | None], shown: Metric) -> list[bool]:
    """Mark the best of several means, and those that are not significantly worse."""
    finite = [each for each in found if each is not None and each.is_finite]
    if len(finite) < 2:
        return [False] * len(found)
    best = max(finite, key=lambda each: shown.sign * each.mean)
    return [each is not None and (each.mean == best.mean or not_significantly_worse(best, each)) for each in found]


def _validation_columns(group: Group) -> list[Column]:
    columns = []
    for moment in ("best", "last"):
        title = f"at {moment} epoch, {group.metric.unit}".removesuffix(", ")
        meaning = f"{group.metric.title} on the validation split"
        column = _metric_column(group, group.metric, _validation(group, moment), meaning)
        columns.append(replace(column, section="Validation", title=title))
    cells = tuple(_epoch_cell(variant) for variant in group.variants)
    meaning = (
        "mean over the seeds; last: tested after the last epoch, trained on all training images without validation"
    )
    return [*columns, Column("Validation", "best epoch", meaning, cells)]


def _epoch_cell(variant: Variant) -> Cell:
    epoch = variant.over_seeds(_best_epoch)
    if epoch is None:
        return Cell(DASH)
    last = " (last)" if all(run.record.metrics.monitor == "step" for run in variant.runs) else ""
    return Cell(f"{epoch.mean:.1f}".removesuffix(".0") + last, order=epoch.mean)


def _validation(group: Group, moment: str) -> OfRun:
    return lambda run: run.validation(group.score, moment)


def _best_epoch(run: SeedRun) -> float:
    return run.record.metrics.best_epoch


def _points_columns(group: Group) -> list[Column]:
    """Return the points that a course gives for a metric, where the study names one that these runs have."""
    grading = group.grading
    if grading is None or grading.metric not in group.test_metrics:
        return []
    graded = metric(grading.metric)
    least, last = max(grading.points), min(grading.points)
    meaning = (
        f"{grading.points[least]:g} from {metric_text(graded, least)}{graded.unit} {graded.title} on the test split, "
        f"{grading.points[last]:g} from {metric_text(graded, last)}{graded.unit}, none below"
    )
    found = (variant.over_seeds(grading.of) for variant in group.variants)
    cells = (
        Cell(f"{each.mean:.1f}", "" if each.std is None else f"{each.std:.1f}", each.mean) if each else Cell(DASH)
        for each in found
    )
    return [Column("Test", f"points for {graded.title}", meaning, tuple(cells), lower_first=False)]


def _cost_columns(group: Group) -> list[Column]:
    batches = sorted({int(size) for variant in group.variants if (size := variant.cost("batch_size")) is not None})
    batch = f" at batch {batches[0]}" if len(batches) == 1 else ""

    def column(title: str, meaning: str, value: OfVariant, text: Callable[[float | None], str]) -> Column:
        values = [value(variant) for variant in group.variants]
        cells = (Cell(text(v), order=v, exact=f"{v:,.0f}" if v is not None and v > 999 else "") for v in values)
        return Column("Cost", title, meaning, tuple(cells))

    def saved(variant: Variant) -> float | None:
        saved_bytes = variant.cost("activation_bytes")
        return None if saved_bytes is None else saved_bytes / 1e6

    columns = [
        column("parameters", "trainable values", lambda v: v.cost("parameters"), with_prefix),
        column("MACs", "multiply-adds of one image at inference", lambda v: v.macs, with_prefix),
        column(
            "weights, MB", "parameters and buffers as they are stored", lambda v: v.cost("weight_megabytes"), megabytes
        ),
        column(f"saved for backward, MB{batch}", "what one training step keeps", saved, megabytes),
    ]
    if len(batches) > 1:
        columns.append(column("batch", "the batch of the column before", lambda v: v.cost("batch_size"), with_prefix))
    return columns


def _time_columns(group: Group) -> list[Column]:
    def column(title: str, meaning: str, name: str) -> Column:
        found = (variant.seconds(name) for variant in group.variants)
        cells = (Cell(duration(each.mean), order=each.mean) if each else Cell(DASH) for each in found)
        return Column("Time", title, meaning, tuple(cells))

    def divided(variant: Variant) -> Cell:
        whole = variant.over_seeds(lambda run: run.all_seconds)
        parts = ((name, variant.seconds(name)) for name in PARTS)
        text = ", ".join(f"{name} {duration(taken.mean)}" for name, taken in parts if taken)
        return Cell(duration(whole.mean), order=whole.mean, exact=text) if whole else Cell(DASH)

    def alone(title: str, meaning: str, name: str) -> list[Column]:
        found = [variant.over_seeds(lambda run: run.alone(name)) for variant in group.variants]
        cells = tuple(Cell(duration(each.mean), order=each.mean) if each else Cell(DASH) for each in found)
        how = f"{meaning}, as `convatlas measure` took it, the nets of the study in turns; mean over the seeds"
        return [Column("Time", title, how, cells)] if any(found) else []

    meaning = f"one run, mean over the seeds; shown with it: {', '.join(PARTS)}"
    whole = [Column("Time", "all", meaning, tuple(map(divided, group.variants)))]
    return [
        column("training", "the steps of one run beside its other seeds, mean over them", "train_seconds"),
        column("latency", "one inference of one image, mean over the seeds", "latency_seconds"),
        *alone("latency alone", "the same", "latency"),
        *alone("training step alone", "one training step", "training_step"),
        *(whole if any(run.all_seconds for variant in group.variants for run in variant.runs) else []),
    ]


# ---- for programs ----------------------------------------------------------------------------------------------------


def records(study: Study) -> list[dict[str, Any]]:
    """Return one record a variant with machine-readable names; a value that is missing is None."""
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
    for name in group.test_metrics:
        record |= _mean_and_std(f"test_{name}", variant.test(name))
    if group.grading is not None:
        record |= _mean_and_std("points", variant.over_seeds(group.grading.of))
    for moment in ("best", "last"):
        found = variant.over_seeds(_validation(group, moment))
        record |= _mean_and_std(f"val_{group.score}_{moment}_epoch", found)
    record |= _mean_and_std("best_epoch", variant.over_seeds(_best_epoch))
    record |= {name: variant.cost(name) for name in CSV_COSTS}
    for name in TIMES:
        record |= _mean_and_std(name, variant.seconds(name))
    record |= _mean_and_std("latency_alone", variant.over_seeds(lambda run: run.alone("latency")))
    record |= _mean_and_std("training_step_alone", variant.over_seeds(lambda run: run.alone("training_step")))
    for name in PARTS:
        record[f"seconds_{name}_mean"] = taken.mean if (taken := variant.seconds(name)) else None
    return record


def _pair_record(pair: Pair, reference: Variant | None) -> dict[str, Any]:
    low, high = pair.interval or (None, None)
    against = reference.key if reference is not None and pair.seeds else None
    return dict(zip(_PAIR, (against, pair.difference, low, high, pair.only_variant, pair.only_reference), strict=True))


def _mean_and_std(name: str, found: Spread | None) -> dict[str, float | None]:
    return {f"{name}_mean": found.mean if found else None, f"{name}_std": found.std if found else None}


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write records as CSV: ten significant digits, whole numbers whole, nothing where a value is missing."""
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
