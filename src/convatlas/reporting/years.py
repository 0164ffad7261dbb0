"""The score of each net by the year of its paper, beside what the lecture prints by year."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import altair as alt

from convatlas.core.metrics import as_words
from convatlas.reporting.charts import (
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
from convatlas.reporting.study import Group, Study
from convatlas.reporting.trade_offs import with_names_apart
from convatlas.reporting.wording import count, spread_text

__all__ = ["by_year"]

FEWEST_YEARS = 4
"""Of papers, below which there is no course to see."""


def by_year(study: Study, group: Group) -> list[Chart]:
    """Draw the score of each variant by the year of its net, and the printed numbers whose names end with a year.

    None where the nets are of fewer than `FEWEST_YEARS`. Printed numbers belong to other data, so they have axes of
    their own.
    """
    rows = _rows(group)
    if len({row["x"] for row in rows}) < FEWEST_YEARS:
        return []
    y = f"test {group.metric.axis}"
    description = f"Test {group.metric.title} of {count(len(rows), 'net')} by the year of their papers."
    note = "Each net by the year of its paper, with the names that have room; point at a dot for the others."
    ours = Chart(f"{capital(group.metric.title)} by year", note, with_names_apart(_vega(rows, y, description)))
    return [ours, *_printed(study.plan.printed)]


def _rows(group: Group) -> list[Row]:
    """Return a row for each variant: x (year), y (score), v(ariant), n(ame), c(olour), t(ext)."""
    hues = colours(group)
    rows = []
    for variant in group.variants:
        found, year = variant.test(group.score), variant.about.get("year")
        if found is not None and found.is_finite and isinstance(year, int):
            row: Row = {"x": year, "y": short(group.metric.factor * found.mean), "v": variant.title, "n": variant.title}
            rows.append(row | {"c": hues[variant.key], "t": spread_text(group.metric, found)})
    return rows


def _printed(printed: Mapping[str, Any]) -> list[Chart]:
    charts = []
    for name, numbers in printed.items():
        if not isinstance(numbers, Mapping):
            continue
        found = [(re.fullmatch(r"(.+)_(\d{4})", str(net)), number) for net, number in numbers.items()]
        rows: list[Row] = [
            {"x": int(match[2]), "y": number, "v": as_words(match[1]), "n": as_words(match[1]), "c": "var(--ink)"}
            | {"t": f"{number:g}"}
            for match, number in found
            if match and isinstance(number, int | float)
        ]
        if len(rows) > 1:
            title = as_words(name)
            vega = _vega(rows, title, f"{title} by year, as the lecture prints it.", line=True)
            charts.append(
                Chart(f"As the lecture prints it: {title}", "Other data and larger nets.", with_names_apart(vega))
            )
    return charts


def _vega(rows: list[Row], y: str, description: str, *, line: bool = False) -> dict[str, Any]:
    years = alt.Axis(format="d", grid=False, tickMinStep=1)
    base = alt.Chart(ROWS).encode(
        x=alt.X("x:Q", title="year of the paper", scale=scale([row["x"] for row in rows], log=False), axis=years),
        y=alt.Y("y:Q", title=y, scale=scale([row["y"] for row in rows], log=False)),
    )
    points = base.mark_point(aria=False, filled=True, size=60, opacity=1).encode(
        color=alt.Color("c:N", scale=None),
        opacity=unless_another_is_picked(1),
        tooltip=tooltip(v="net", x="year", t="score"),
    )
    names = base.mark_text(aria=False).encode(text="n:N")
    layers = [points.properties(name="points"), names.properties(name="names")]
    if line:
        layers.insert(0, base.mark_line(aria=False, color="var(--ink-soft)", strokeWidth=1.2))
    return compiled(layers, rows, description)
