"""The test score against what it costs, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from convatlas.reporting.charts import (
    COLOUR,
    REST,
    ROWS,
    Chart,
    Row,
    capital,
    colours,
    compiled,
    scale,
    short,
    tooltip,
    unless_another_is_picked,
)
from convatlas.reporting.statistics import pareto_front
from convatlas.reporting.study import Group, Variant
from convatlas.reporting.wording import count, duration, spread_text, with_prefix

NAMED_POINTS = 20
"""Points that may all have their names; of more, only those on the front and those with a colour."""


@dataclass(frozen=True)
class Price:
    """Something that a better score may cost.

    Attributes:
        title: its name.
        axis: title of its axis, with the unit.
        of: what a variant costs; None where that was not measured.
        text: how a value of it is written.
    """

    title: str
    axis: str
    of: Callable[[Variant], float | None]
    text: Callable[[float], str]


def _alone(name: str) -> Callable[[Variant], float | None]:
    return lambda variant: found.mean if (found := variant.over_seeds(lambda run: run.alone(name))) else None


def _training_seconds(variant: Variant) -> float | None:
    found = variant.seconds("train_seconds")
    return found.mean if found else None


PRICES = (
    Price("parameters", "parameters", lambda variant: variant.cost("parameters"), with_prefix),
    Price("MACs", "MACs of one image at inference", lambda variant: variant.macs, with_prefix),
    Price("training time", "seconds of one training", _training_seconds, duration),
    Price(
        "memory",
        "bytes saved for backward by one step",
        lambda variant: variant.cost("activation_bytes"),
        lambda value: f"{with_prefix(value)}B",
    ),
    Price("latency measured alone", "seconds of one image, the nets in turns", _alone("latency"), duration),
    Price("training step measured alone", "seconds of one step, the nets in turns", _alone("training_step"), duration),
)


LATENCY = Price(
    "latency",
    "seconds of one inference of one image",
    lambda variant: found.mean if (found := variant.seconds("latency_seconds")) else None,
    duration,
)


def trade_offs(group: Group, prices: Sequence[Price] = PRICES, links: Mapping[str, str] | None = None) -> list[Chart]:
    """Draw the test score against what it costs, each price where two variants have both.

    `links` has the addresses that the points of variants lead to, by key.
    """
    charts = (_trade_off(group, price, links or {}) for price in prices)
    return [chart for chart in charts if chart is not None]


def _trade_off(group: Group, price: Price, links: Mapping[str, str]) -> Chart | None:
    rows = _rows(group, price, links)
    if len(rows) < 2:
        return None
    front = ", ".join(row["v"] for row in rows if row["f"])
    title = f"{group.metric.title} against {price.title}"
    description = f"Test {title} of {count(len(rows), 'variant')}. On the Pareto front, by rising price: {front}."
    vega = compiled(_layers(rows, f"test {group.metric.axis}", price), rows, description)
    return Chart(capital(title), "", with_names_apart(vega))


def _rows(group: Group, price: Price, links: Mapping[str, str]) -> list[Row]:
    """Return a row for each variant, the front first, since names are placed in this order.

    v(ariant), n(ame shown), c(olour), x, y, a and b (the bar's ends), f(ront), u (its address), and texts: t (score),
    p(rice), o(ver).
    """
    rows = []
    for variant, colour in zip(group.variants, colours(group).values(), strict=True):
        found, paid = variant.test(group.score), price.of(variant)
        if found is None or not found.is_finite or paid is None or not paid > 0:
            continue
        factor = group.metric.factor
        row: Row = {"v": variant.title, "c": colour, "x": short(paid), "y": short(factor * found.mean)}
        row |= {"t": spread_text(group.metric, found), "p": price.text(paid), "o": count(found.n, "seed")}
        if variant.key in links:
            row["u"] = links[variant.key]
        if found.std is not None:
            row |= {"a": short(factor * (found.mean - found.std)), "b": short(factor * (found.mean + found.std))}
        rows.append(row)
    front = pareto_front([(row["x"], group.metric.sign * row["y"]) for row in rows])
    for row, on_front in zip(rows, front, strict=True):
        named = on_front or row["c"] != REST or len(rows) <= NAMED_POINTS
        row |= {"f": on_front, "n": row["v"] if named else ""}
    return sorted(rows, key=lambda row: (not row["f"], row["x"]))


def _layers(rows: list[Row], score: str, price: Price) -> list[alt.Chart]:
    prices = [row["x"] for row in rows]
    x = scale(prices, log=max(prices) > 5 * min(prices))
    y = scale([row[end if end in row else "y"] for row in rows for end in "ab"], log=False)
    base = alt.Chart(ROWS).encode(
        x=alt.X("x:Q", title=price.axis, scale=x, axis=alt.Axis(format="~s", grid=False, tickCount=5)),
        y=alt.Y("y:Q", title=score, scale=y),
    )
    front = base.transform_filter("datum.f").mark_line(
        aria=False, interpolate="step-after", strokeDash=[4, 3], strokeWidth=1, color="var(--ink-soft)"
    )
    points = base.mark_point(aria=False, filled=False, size=70, strokeWidth=2).encode(
        stroke=alt.Stroke("c:N", scale=None),
        fill=alt.condition("datum.f", alt.Fill("c:N", scale=None), alt.value("var(--paper)")),
        opacity=unless_another_is_picked(1),
        tooltip=tooltip(v="variant", t="score", p=price.title, o="over"),
    )
    if any("u" in row for row in rows):
        points = points.encode(href="u:N")
    names = base.mark_text(aria=False).encode(text="n:N")
    layers = [front, points.properties(name="points"), names.properties(name="names")]
    if any("a" in row for row in rows):
        bars = base.transform_filter("isValid(datum.a)").mark_rule(aria=False)
        layers.insert(1, bars.encode(y="a:Q", y2="b:Q", color=COLOUR, opacity=unless_another_is_picked(0.7)))
    return layers


def with_names_apart(vega: dict[str, Any]) -> dict[str, Any]:
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
