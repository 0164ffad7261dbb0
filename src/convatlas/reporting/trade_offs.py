"""The test score against what it costs, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from convatlas.reporting.results import Group
from convatlas.reporting.statistics import pareto_front
from convatlas.reporting.tables import cost, macs, tested, timed
from convatlas.reporting.variants import Variant
from convatlas.reporting.wording import Metric, count, duration, with_prefix

NAMED_POINTS = 20
"""Points that may all have their names; of more, only those on the front and those with a colour."""


@dataclass(frozen=True)
class Price:
    """Something that a better score may cost.

    Attributes:
        title: its name.
        axis: title of its axis, with the unit.
        of: what a variant costs; None where that was not measured.
        text: a figure of it, written for people.
    """

    title: str
    axis: str
    of: Callable[[Variant], float | None]
    text: Callable[[float], str]


def _training_seconds(variant: Variant) -> float | None:
    found = timed(variant, "train_seconds")
    return found.mean if found else None


def _bytes(value: float) -> str:
    return f"{with_prefix(value)}B"


PRICES = (
    Price("parameters", "parameters", lambda variant: cost(variant, "parameters"), with_prefix),
    Price("MACs", "MACs of one image at inference", macs, with_prefix),
    Price("training time", "seconds of one training", _training_seconds, duration),
    Price("memory", "bytes saved for backward by one step", lambda variant: cost(variant, "activation_bytes"), _bytes),
)


def trade_offs(group: Group) -> list[Chart]:
    """Draw the test score against parameters, multiply-adds, time and memory, each where two variants have both."""
    charts = (_trade_off(group, price) for price in PRICES)
    return [chart for chart in charts if chart is not None]


def _trade_off(group: Group, price: Price) -> Chart | None:
    metric = Metric(group.score)
    rows = _rows(group, metric, price)
    if len(rows) < 2:
        return None
    front = ", ".join(row["v"] for row in rows if row["f"])
    title = f"{metric.title} against {price.title}"
    description = f"Test {title} of {count(len(rows), 'variant')}. On the Pareto front, by rising price: {front}."
    vega = compiled(_layers(rows, f"test {metric.axis}", price), rows, description)
    return Chart(capital(title), "", _with_names_apart(vega))


def _rows(group: Group, metric: Metric, price: Price) -> list[Row]:
    """Return a row for each variant, the front first, since names are placed in this order.

    v(ariant), n(ame shown), c(olour), x, y, a and b (the bar's ends), f(ront), and texts: t (score), p(rice), o(ver).
    """
    colour = colours(group)
    found = [_row(variant, metric, price) for variant in group.variants]
    rows = [row | {"c": colour[key]} for key, row in zip(colour, found, strict=True) if row is not None]
    front = pareto_front([(row["x"], row["y"]) for row in rows])
    for row, on_front in zip(rows, front, strict=True):
        named = on_front or row["c"] != REST or len(rows) <= NAMED_POINTS
        row |= {"f": on_front, "n": row["v"] if named else ""}
    return sorted(rows, key=lambda row: (not row["f"], row["x"]))


def _row(variant: Variant, metric: Metric, price: Price) -> Row | None:
    found, paid = tested(variant, metric.name), price.of(variant)
    if found is None or not math.isfinite(found.mean) or paid is None or not paid > 0:
        return None
    row: Row = {"v": variant.title, "x": short(paid), "y": short(metric.factor * found.mean)}
    row |= {"t": metric.spread_text(found), "p": price.text(paid), "o": count(found.n, "seed")}
    if found.deviation is not None:
        row["a"] = short(metric.factor * (found.mean - found.deviation))
        row["b"] = short(metric.factor * (found.mean + found.deviation))
    return row


def _layers(rows: list[Row], score: str, price: Price) -> list[alt.Chart]:
    hue = alt.Color("c:N", scale=None)
    y = alt.Y("y:Q", title=score, scale=_score_scale(rows))
    base = alt.Chart(ROWS).encode(x=_price_axis([row["x"] for row in rows], price.axis), y=y)
    front = base.transform_filter("datum.f").mark_line(
        aria=False, interpolate="step-after", strokeDash=[4, 3], strokeWidth=1, color="var(--ink-soft)"
    )
    points = base.mark_point(aria=False, filled=False, size=70, strokeWidth=2).encode(
        stroke=alt.Stroke("c:N", scale=None),
        fill=alt.condition("datum.f", alt.Fill("c:N", scale=None), alt.value("var(--paper)")),
        opacity=unless_another_is_picked(1),
        tooltip=[called("v", "variant"), called("t", "score"), called("p", price.title), called("o", "over")],
    )
    names = base.mark_text(aria=False).encode(text="n:N")
    layers = [front, points.properties(name="points"), names.properties(name="names")]
    if any("a" in row for row in rows):
        bars = base.transform_filter("isValid(datum.a)").mark_rule(aria=False)
        layers.insert(1, bars.encode(y="a:Q", y2="b:Q", color=hue, opacity=unless_another_is_picked(0.7)))
    return layers


def _score_scale(rows: Sequence[Row]) -> alt.Scale:
    low = min(float(row["a" if "a" in row else "y"]) for row in rows)
    high = max(float(row["b" if "b" in row else "y"]) for row in rows)
    margin = 0.08 * (high - low) or 1.0
    return alt.Scale(domain=[short(low - margin), short(high + margin)], nice=False)


def _price_axis(values: Sequence[float], title: str) -> alt.X:
    """Choose a logarithmic axis where the prices span more than a factor of five."""
    low, high = min(values), max(values)
    if high > 5 * low:
        margin = (high / low) ** 0.06
        low, high = low / margin, high * margin
        scale = alt.Scale(type="log", domain=[short(low), short(high)], nice=False)
        axis = alt.Axis(values=round_values(low, high), format="~s", grid=False)
    else:
        margin = 0.06 * (high - low) or 0.1 * high
        scale = alt.Scale(domain=[short(low - margin), short(high + margin)], nice=False)
        axis = alt.Axis(format="~s", grid=False, tickCount=5)
    return alt.X("x:Q", title=title, scale=scale, axis=axis)


def _with_names_apart(vega: dict[str, Any]) -> dict[str, Any]:
    """Let Vega place the names where they hide neither each other nor a point, and leave out what has no room.

    Vega-Lite has no word for Vega's label transform, so it is put into the compiled chart.
    """
    names = next(mark for mark in vega["marks"] if mark["name"] == "names_marks")
    names["from"] = {"data": "points_marks"}
    names["encode"] = {
        "enter": {
            "text": {"field": "datum.n"},
            "fontSize": {"value": 11},
            "fill": {"value": "var(--ink)"},
            "stroke": {"value": "var(--paper)"},
            "strokeWidth": {"value": 3},
            "strokeOpacity": {"value": 0.8},
        },
        "update": {"fillOpacity": {"signal": "picked === '' || picked === datum.datum.v ? 1 : 0.15"}},
    }
    sides = ["right", "left", "top", "bottom"]
    corners = ["top-right", "top-left", "bottom-right", "bottom-left"]
    label = {
        "type": "label",
        # While a browser lays the page out anew the width is zero for a moment, which the transform does not survive.
        "size": {"signal": "[max(1, width), height]"},
        "anchor": [*sides, *corners],
        "offset": [5],
        "avoidMarks": ["points_marks"],
    }
    names["transform"] = [label]
    return vega
