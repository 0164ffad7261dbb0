"""Learning curves: training loss and validation score by epoch, with the spread over the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from convatlas.reporting.charts import (
    REST,
    ROWS,
    Chart,
    Row,
    called,
    capital,
    colours,
    compiled,
    round_values,
    short,
    unless_another_is_picked,
)
from convatlas.reporting.curves import CURVE_POINTS, over_epochs
from convatlas.reporting.results import Group
from convatlas.reporting.wording import Metric, count, spoken

LINE_POINTS = 2400
"""Points of all lines of a chart together, about: the more lines, the fewer epochs are drawn of each."""
HOVER_POINTS = 1500
"""Points of a chart that may have a tooltip each; above, a line has one for the whole of it."""

BAND = "Mean over the seeds; the band reaches from the lowest seed to the highest."


def learning_curves(group: Group) -> list[Chart]:
    """Draw the training loss and the validation score of every variant by epoch, as far as runs have them."""
    charts = (_training_loss(group), _validation_score(group))
    return [chart for chart in charts if chart is not None]


def inner_curves(group: Group) -> list[Chart]:
    """Draw by epoch what nets tell of themselves, such as the share of blocks that were computed."""
    columns = dict.fromkeys(c for run in group.runs for c in run.history if c.startswith("net/"))
    charts = []
    for column in columns:
        name, rows = spoken(column.removeprefix("net/")), _rows(group, column, factor=1)
        if rows:
            looks = {"title": name, "scale": alt.Scale(zero=False)}
            description = f"{capital(name)} by epoch of {_how_many(rows)}. {_best_end(rows, 'highest')}"
            charts.append(Chart(capital(name), BAND, compiled(_layers(rows, looks, ".3f"), rows, description)))
    return charts


def _training_loss(group: Group) -> Chart | None:
    rows = _rows(group, "train/loss", factor=1)
    if not rows:
        return None
    low, high = min(row["m"] for row in rows), max(row["m"] for row in rows)
    looks: dict[str, Any] = {"title": "training loss", "scale": alt.Scale(zero=False)}
    note = BAND
    if low > 0 and high > 30 * low:
        looks["scale"] = alt.Scale(type="log", nice=False)
        looks["axis"] = alt.Axis(values=round_values(low, high), format="~g")
        note += " The scale is logarithmic."
    description = f"Training loss by epoch of {_how_many(rows)}. {_best_end(rows, 'lowest')}"
    return Chart("Training loss", note, compiled(_layers(rows, looks, ".4f"), rows, description))


def _validation_score(group: Group) -> Chart | None:
    metric = Metric(group.score)
    rows = _rows(group, f"val/{group.score}", metric.factor)
    if not rows:
        return None
    low, high = _frame(rows)
    chosen = "The epoch with the best value gives the weights that are tested. "
    note = (chosen if group.monitors == [f"val/{group.score}"] else "") + BAND
    if low > min(row["m"] for row in rows):
        note += " The first epochs lie below the frame."
    description = f"Validation {metric.title} by epoch of {_how_many(rows)}. {_best_end(rows, 'highest')}"
    looks = {"title": f"validation {metric.axis}", "scale": alt.Scale(domain=[low, high], nice=False)}
    return Chart(f"Validation {metric.title}", note, compiled(_layers(rows, looks, ".2f"), rows, description))


def _rows(group: Group, column: str, factor: float) -> list[Row]:
    """Return a row for each variant and epoch: e(poch), m(ean), l(ow), h(igh), v(ariant), c(olour).

    Grey ones come first, so that the coloured lie above them; only the coloured have a band.
    """
    colour = colours(group)
    limit = max(20, min(CURVE_POINTS, LINE_POINTS // len(group.variants)))
    rows: list[Row] = []
    for variant in sorted(group.variants, key=lambda variant: colour[variant.key] != REST):
        hue = colour[variant.key]
        for epoch, values in over_epochs(variant, column, limit):
            mean = short(factor * sum(values) / len(values))
            row: Row = {"e": epoch, "m": mean, "v": variant.title, "c": hue}
            if len(values) > 1 and hue != REST:
                row |= {"l": short(factor * min(values)), "h": short(factor * max(values))}
            rows.append(row)
    return rows


def _frame(rows: Sequence[Row]) -> tuple[float, float]:
    """Choose the range of the score's axis: the rise of the first tenth of the epochs would flatten all the rest."""
    last = max(row["e"] for row in rows)
    settled = [row for row in rows if row["e"] > last / 10]
    low = min(_figures(settled, "l"))
    high = max(_figures(rows, "h"))
    margin = 0.04 * (high - low) or 1.0
    return short(low - margin), short(high + margin)


def _figures(rows: Sequence[Row], end: str) -> Iterable[float]:
    """Give an end of each band; of a row without a band, its mean."""
    return (float(row[end if end in row else "m"]) for row in rows)


def _layers(rows: list[Row], looks: dict[str, Any], digits: str) -> list[alt.Chart]:
    """Draw bands, lines and points to hover over; `looks` are title, scale and axis of the vertical."""
    base = alt.Chart(ROWS).encode(
        x=_epoch_axis(rows), y=alt.Y("m:Q", **looks), color=alt.Color("c:N", scale=None), detail="v:N"
    )
    line = base.mark_line(aria=False, clip=True).encode(
        opacity=unless_another_is_picked(1),
        strokeWidth=alt.condition(f"datum.c === '{REST}'", alt.value(0.8), alt.value(1.8)),
        tooltip=called("v", "variant"),
    )
    layers = [line]
    if any("l" in row for row in rows):
        band = base.transform_filter("isValid(datum.l)").mark_area(aria=False, clip=True)
        low = alt.Y("l:Q", **looks)  # an area with a scale of its own would begin it at zero
        layers.insert(0, band.encode(y=low, y2="h:Q", opacity=unless_another_is_picked(0.14)))
    if len(rows) <= HOVER_POINTS:
        layers.append(_hover_points(base, digits))
    return layers


def _hover_points(base: alt.Chart, digits: str) -> alt.Chart:
    """Make invisible points that tell a variant's figures of one epoch."""
    figures = (("m", "mean"), ("l", "lowest seed"), ("h", "highest seed"))
    told = [alt.Tooltip(f"{field}:Q", title=title, format=digits) for field, title in figures]
    tooltip = [called("v", "variant"), called("e", "epoch"), *told]
    return base.mark_circle(aria=False, clip=True, opacity=0, size=90).encode(tooltip=tooltip)


def _epoch_axis(rows: Sequence[Row]) -> alt.X:
    last = max(row["e"] for row in rows)
    scale = alt.Scale(domain=[min(1, last - 1), last], nice=False)
    return alt.X("e:Q", title="epoch", scale=scale, axis=alt.Axis(grid=False, values=whole_ticks(last), format="d"))


def whole_ticks(last: int, limit: int = 12) -> list[int]:
    """Return the first epoch and every n-th, n being 1, 2 or 5 times a power of ten, so that they are few."""
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if last <= limit * step)
    return sorted({1, *range(step, last + 1, step)})


def _how_many(rows: Sequence[Row]) -> str:
    return count(len({row["v"] for row in rows}), "variant")


def _best_end(rows: Sequence[Row], which: str) -> str:
    """Say which variant ends `lowest` or `highest`."""
    ends = {row["v"]: row["m"] for row in rows}
    sign = 1 if which == "lowest" else -1
    name = min(ends, key=lambda title: sign * ends[title])
    return f"The {which} at the end is {name} with {ends[name]:g}."
