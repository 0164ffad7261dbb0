"""What all charts of a page share: colours, axes, and how they are compiled.

Charts are written with Altair (Vega-Lite) and compiled to Vega here, so that a mistake shows when the report is made,
not in a browser. Colours are CSS variables: the page alone decides what light, dark and print look like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from convatlas.reporting.study import Group, Variant

HUES = 8
"""Variants with a colour of their own; more cannot be told apart. In a larger group the best ones have them."""
REST = "var(--rest)"
"""The grey of all others."""

ROWS = alt.NamedData(name="rows")
COLOUR = alt.Color("c:N", scale=None)
EPOCHS = alt.Axis(grid=False, format="d", labelExpr="datum.value % 1 ? '' : datum.label")
"""An axis of whole numbers; Vega puts marks between few of them, and their labels would say the same twice."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A compiled chart: its heading, how to read it, and its specification with a description in words."""

    title: str
    note: str
    vega: Mapping[str, Any]


def colours(group: Group) -> dict[str, str]:
    """Give a colour to each variant with a result; of more than `HUES` to the best, and grey to the others."""

    def rank(variant: Variant) -> float:
        found = variant.test(group.score)
        return -group.metric.sign * found.mean if found and found.is_finite else math.inf

    chosen = [variant for variant in group.variants if variant.runs]
    best = {variant.key for variant in sorted(chosen, key=rank)[:HUES]}
    hues = {key: f"var(--hue-{number})" for number, key in enumerate(v.key for v in chosen if v.key in best)}
    return {variant.key: hues.get(variant.key, REST) for variant in group.variants}


def compiled(layers: list[alt.Chart], rows: list[Row], description: str) -> dict[str, Any]:
    """Compile a chart that fills the width it is given, in the page's colours, and give it its rows.

    Altair copies and checks what it holds many times over; rows that are put in last cost nothing.
    """
    looks: dict[str, Any] = {f"{part}Color": "var(--ink-soft)" for part in ("label", "title")}
    looks |= {"gridColor": "var(--rule)", "titleFontWeight": "normal"}
    looks |= {f"{part}Color": "var(--rule-strong)" for part in ("domain", "tick")}
    chart = (
        alt.LayerChart(layer=layers)
        .add_params(alt.param(name="picked", value=""))
        .properties(width="container", height=300, description=description)
        .configure(
            background="transparent",
            font="system-ui, sans-serif",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            axis=alt.AxisConfig(**looks),
            view=alt.ViewConfig(stroke=None),
        )
    )
    vega: dict[str, Any] = vl_convert.vegalite_to_vega(chart.to_dict())
    next(source for source in vega["data"] if source["name"] == ROWS.name)["values"] = rows
    return vega


def scale(values: list[float], *, log: bool) -> alt.Scale:
    """Return the scale of an axis that reaches a little beyond the values at both ends."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** 0.07 if high > low else 1.5
        return alt.Scale(type="log", domain=[short(low / factor), short(high * factor)], nice=False)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return alt.Scale(domain=[short(low - margin), short(high + margin)], nice=False)


def unless_another_is_picked(shown: float) -> Any:
    """Return an opacity: `shown`, or faint while the reader points out another variant."""
    return alt.condition("picked === '' || picked === datum.v", alt.value(shown), alt.value(round(0.1 * shown, 3)))


def tooltip(**titles: str) -> list[alt.Tooltip]:
    """Return the lines of a tooltip: title by field."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def short(value: float) -> float:
    """Round to five significant digits: more would only make the page larger."""
    return float(f"{value:.5g}")


def capital(text: str) -> str:
    """Begin a heading with a capital, unless its first word has one of its own (mAP)."""
    first = text.split(maxsplit=1)[0]
    return text[:1].upper() + text[1:] if first == first.lower() else text
