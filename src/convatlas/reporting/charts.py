"""What all charts of the page share: colours, looks, and how they are compiled.

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

from convatlas.reporting.results import Group
from convatlas.reporting.tables import tested
from convatlas.reporting.variants import Variant

HUES = 8
"""Variants with a colour of their own; more cannot be told apart. In a larger group the best ones have them."""
REST = "var(--rest)"
"""The grey of all others."""

ROWS = alt.NamedData(name="rows")
Row = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A compiled chart and what a reader is told about it.

    Attributes:
        title: heading.
        note: how to read it.
        vega: the specification, with a description for readers who do not see the chart.
    """

    title: str
    note: str
    vega: Mapping[str, Any]


def colours(group: Group) -> dict[str, str]:
    """Give a colour to each variant with a result; of more than `HUES` to the best, and grey to the others."""
    chosen = [variant for variant in group.variants if variant.runs]
    if len(chosen) > HUES:
        chosen = sorted(chosen, key=lambda variant: -_rank(variant, group.score))[:HUES]
    in_plan_order = [variant.key for variant in group.variants if variant in chosen]
    hues = {key: f"var(--hue-{number})" for number, key in enumerate(in_plan_order)}
    return {variant.key: hues.get(variant.key, REST) for variant in group.variants}


def _rank(variant: Variant, score: str) -> float:
    found = tested(variant, score)
    return found.mean if found and math.isfinite(found.mean) else -math.inf


def compiled(layers: list[alt.Chart], rows: list[Row], description: str) -> dict[str, Any]:
    """Compile a chart that fills the width it is given, in the page's colours, and give it its rows.

    Altair copies and checks what it holds many times over; rows that are put in last cost nothing.
    """
    chart = (
        alt.LayerChart(layer=layers)
        .add_params(alt.param(name="picked", value=""))
        .properties(width="container", height=300, description=description)
        .configure(
            background="transparent",
            font="system-ui, sans-serif",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
            axis=_axis_looks(),
            view=alt.ViewConfig(stroke=None),
        )
    )
    vega: dict[str, Any] = vl_convert.vegalite_to_vega(chart.to_dict())
    next(source for source in vega["data"] if source["name"] == ROWS.name)["values"] = rows
    return vega


def _axis_looks() -> alt.AxisConfig:
    return alt.AxisConfig(
        domainColor="var(--rule-strong)",
        gridColor="var(--rule)",
        labelColor="var(--ink-soft)",
        labelFontSize=11,
        tickColor="var(--rule-strong)",
        titleColor="var(--ink-soft)",
        titleFontSize=12,
        titleFontWeight="normal",
        titlePadding=10,
    )


def unless_another_is_picked(shown: float) -> Any:
    """Return an opacity: `shown`, or faint while the reader points out another variant."""
    return alt.condition("picked === '' || picked === datum.v", alt.value(shown), alt.value(round(0.1 * shown, 3)))


def called(field: str, title: str) -> alt.Tooltip:
    """Return a line of a tooltip."""
    return alt.Tooltip(f"{field}:N", title=title)


def round_values(low: float, high: float) -> list[float]:
    """Return round values between two positive ones for a logarithmic axis: the fewer of a decade, the more decades."""
    span = high / low
    steps = (1, 2, 5) if span < 200 else (1, 3) if span < 3000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [short(step * 10.0**power) for power in powers for step in steps]
    return [value for value in values if low <= value <= high]


def short(value: float) -> float:
    """Round to five significant digits: more would only make the page larger."""
    return float(f"{value:.5g}")


def capital(text: str) -> str:
    """Begin a heading with a capital, unless its first word has one of its own (mAP)."""
    first = text.split(maxsplit=1)[0]
    return text[:1].upper() + text[1:] if first == first.lower() else text
