"""Curves of each variant: loss and score by epoch, what nets log of themselves, and the gradient by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from convatlas.core.metrics import as_words
from convatlas.reporting.charts import (
    COLOUR,
    EPOCHS,
    REST,
    ROWS,
    Chart,
    Row,
    capital,
    colours,
    compiled,
    short,
    tooltip,
    unless_another_is_picked,
)
from convatlas.reporting.study import CURVE_POINTS, Group, Variant
from convatlas.reporting.wording import count

LINE_POINTS = 2400
"""Points of all lines of a chart together, about: the more lines, the fewer epochs are drawn of each."""
HOVER_POINTS = 1500
"""Points of a chart that may have a tooltip each; above, a line has one for the whole of it."""

BAND = (
    "Mean over the seeds; the band reaches from the lowest seed to the highest. Point a variant out to see each seed."
)
FROM_DATA = alt.Scale(zero=False)


def learning_curves(group: Group) -> list[Chart]:
    """Draw training loss, validation score and learning rate of every variant by epoch, as far as runs have them."""
    charts = (_training_loss(group), _validation_score(group), _learning_rate(group))
    return [chart for chart in charts if chart is not None]


def inner_curves(group: Group) -> list[Chart]:
    """Draw by epoch what nets log of themselves, such as the share of blocks that were computed."""
    columns = dict.fromkeys(c for run in group.runs for c in run.record.columns if c.startswith("net/"))
    charts = (
        _chart(_rows(group, column), as_words(column.removeprefix("net/")), BAND, {"scale": FROM_DATA})
        for column in columns
    )
    return [chart for chart in charts if chart is not None]


def _learning_rate(group: Group) -> Chart | None:
    """Draw the rate of the variants that learnt something with it."""
    learnt = {row["v"] for row in _rows(group, f"val/{group.score}") or _rows(group, "train/loss")}
    rows = [row for row in _rows(group, "lr") if row["v"] in learnt and "s" not in row]
    return _chart(rows, "learning rate", "At the end of each epoch.", {"axis": alt.Axis(format="~g")})


def _training_loss(group: Group) -> Chart | None:
    rows = _rows(group, "train/loss")
    note, scale = BAND, FROM_DATA
    values = [row["m"] for row in rows if "m" in row]
    if rows and min(values) > 0 and max(values) > 30 * min(values):
        note, scale = f"{BAND} The scale is logarithmic.", alt.Scale(type="log", nice=False)
    return _chart(rows, "training loss", note, {"scale": scale}, best=min)


def _validation_score(group: Group) -> Chart | None:
    metric = group.metric
    rows = _rows(group, f"val/{group.score}", metric.factor)
    if not rows:
        return None
    # The rise of the first tenth of the epochs would flatten all the rest.
    last = max(row["e"] for row in rows)
    means = [row for row in rows if "m" in row]
    settled = [row[end if end in row else "m"] for row in means if row["e"] > last / 10 for end in "lh"]
    rises, low, high = metric.sign > 0, min(settled), max(settled)
    is_cut = any(row["m"] < low if rises else row["m"] > high for row in means)
    frame: dict[str, Any] = {} if not is_cut else {"domainMin": low} if rises else {"domainMax": high}
    chosen = "The epoch with the best value gives the weights that are tested. "
    note = (chosen if group.monitors == [f"val/{group.score}"] else "") + BAND
    if is_cut:
        note += f" The first epochs lie {'below' if rises else 'above'} the frame."
    y = {"title": f"validation {metric.axis}", "scale": alt.Scale(zero=False, **frame)}
    return _chart(rows, f"validation {metric.title}", note, y, best=max if rises else min)


def _rows(group: Group, column: str, factor: float = 1.0) -> list[Row]:
    """Return a row for each variant and epoch: e(poch), m(ean), l(ow), h(igh), v(ariant), c(olour).

    Grey ones come first, so that the coloured lie above them; only the coloured have a band, and a row for each seed:
    e, s (its value), k (its number), v, c.
    """
    colour = colours(group)
    limit = max(20, min(CURVE_POINTS, LINE_POINTS // len(group.variants)))
    rows: list[Row] = []
    for variant in sorted(group.variants, key=lambda variant: colour[variant.key] != REST):
        hue = colour[variant.key]
        for epoch, values in variant.curve(column, limit):
            row: Row = {"e": epoch, "m": short(factor * sum(values) / len(values)), "v": variant.title, "c": hue}
            if len(values) > 1 and hue != REST:
                row |= {"l": short(factor * min(values)), "h": short(factor * max(values))}
                of_seed = {"e": epoch, "v": variant.title, "c": hue}
                rows += [of_seed | {"s": short(factor * value), "k": k} for k, value in enumerate(values)]
            rows.append(row)
    return rows


def _chart(rows: list[Row], title: str, note: str, y: dict[str, Any], *, best: Any = max) -> Chart | None:
    """Draw bands, lines and points to hover over; `y` is how the vertical axis looks."""
    if not rows:
        return None
    ends = {row["v"]: row["m"] for row in rows if "m" in row}
    name = best(ends, key=ends.__getitem__)
    description = (
        f"{capital(title)} by epoch of {count(len(ends), 'variant')}. "
        f"The {'lowest' if best is min else 'highest'} at the end is {name} with {ends[name]:g}."
    )
    y = {"title": title} | y
    x = alt.X("e:Q", title="epoch", scale=alt.Scale(zero=False), axis=EPOCHS)
    every = alt.Chart(ROWS).encode(x=x, color=COLOUR)
    base = every.transform_filter("isValid(datum.m)").encode(y=alt.Y("m:Q", **y), detail="v:N")
    layers = [
        base.mark_line(aria=False, clip=True).encode(
            opacity=unless_another_is_picked(1),
            strokeWidth=alt.condition(f"datum.c === '{REST}'", alt.value(0.8), alt.value(1.8)),
            tooltip=tooltip(v="variant"),
        )
    ]
    if any("l" in row for row in rows):
        band = base.transform_filter("isValid(datum.l)").mark_area(aria=False, clip=True)
        low = alt.Y("l:Q", **y)  # an area with a scale of its own would begin it at zero
        layers.insert(0, band.encode(y=low, y2="h:Q", opacity=unless_another_is_picked(0.14)))
    if any("s" in row for row in rows):
        seeds = every.transform_filter("isValid(datum.s)").mark_line(aria=False, clip=True, strokeWidth=1)
        one = alt.condition("picked === datum.v", alt.value(0.8), alt.value(0))
        layers.append(seeds.encode(y=alt.Y("s:Q", **y), detail=["v:N", "k:N"], opacity=one))
    if len(rows) <= HOVER_POINTS:
        shown = (("m", "mean"), ("l", "lowest seed"), ("h", "highest seed"))
        numbers = [alt.Tooltip(f"{field}:Q", title=word, format=".4g") for field, word in shown]
        is_line = len({row["e"] for row in rows}) > 1
        points = base.mark_circle(aria=False, clip=is_line, opacity=0 if is_line else 1, size=90)
        layers.append(points.encode(tooltip=[*tooltip(v="variant", e="epoch"), *numbers]))
    return Chart(capital(title), note, compiled(layers, rows, description))


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradient_chart(group: Group) -> Chart | None:
    """Draw the mean norm of each layer's gradient in the first epoch; None where no run measured it."""
    colour = colours(group)
    rows: list[Row] = []
    for variant in group.variants:
        norms = first_epoch_norms(variant)
        last = max(1, len(norms) - 1)
        rows += [
            {"e": short(number / last), "m": short(norm), "n": number + 1, "v": variant.title, "c": colour[variant.key]}
            for number, norm in enumerate(norms)
            if norm > 0
        ]
    if not rows:
        return None
    place = alt.Axis(grid=False, values=[0, 1], labelExpr="datum.value == 0 ? 'first layer' : 'last'")
    line = (
        alt.Chart(ROWS)
        .encode(
            x=alt.X("e:Q", title="place in the net", axis=place),
            y=alt.Y("m:Q", title="norm of the gradient", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g")),
            color=COLOUR,
            detail="v:N",
            opacity=unless_another_is_picked(1),
            tooltip=tooltip(v="variant", n="layer", m="norm"),
        )
        .mark_line(aria=False, strokeWidth=1.8, point={"size": 14, "filled": True})
    )
    lowest = min(rows, key=lambda row: row["m"])
    description = (
        f"Norm of the gradient by layer of {count(len({row['v'] for row in rows}), 'variant')}. "
        f"The lowest is {lowest['m']:g}, at layer {lowest['n']} of {lowest['v']}."
    )
    note = "Mean over the batches of the first epoch and over the seeds, before clipping. The scale is logarithmic."
    return Chart("Gradient of each layer", note, compiled([line], rows, description))


def first_epoch_norms(variant: Variant) -> Sequence[float]:
    """Return the mean over the seeds of each layer's norm in the first epoch, from the first layer on."""
    columns = sorted({c for run in variant.runs for c in run.record.columns if c.startswith("gradient/")})
    found = ([run.record.columns[c][0] for run in variant.runs if run.record.columns.get(c)] for c in columns)
    return [math.fsum(values) / len(values) for values in found]
