"""The figures that the lecture draws, drawn of our runs, with what the lecture prints beside them.

Printed values belong to other data and larger nets. They have axes of their own, so that the courses can be compared;
both have the lecture's units: percent, millions, 10^6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from convatlas.core.metrics import metric
from convatlas.core.statistics import Spread, spread
from convatlas.reporting.charts import COLOUR, HUES, REST, ROWS, Chart, Row, capital, compiled, scale, short, tooltip
from convatlas.reporting.study import LectureFigure, Study, Variant
from convatlas.reporting.wording import PLUS_MINUS, count
from convatlas.studies.claims import Quantity

__all__ = ["Drawing", "lecture_figures"]

# Title and factor of the figures that are no test metrics.
AXES = {
    "error": ("test error, %", 100.0),
    "parameters": ("parameters, millions", 1e-6),
    "macs": ("MACs, millions", 1e-6),
    "macs_inference": ("MACs at inference, millions", 1e-6),
    "weight_megabytes": ("weights, MB", 1.0),
    "activation_bytes": ("saved for backward, MB", 1e-6),
    "train_seconds": ("training, s", 1.0),
    "test_seconds": ("testing, s", 1.0),
    "latency_seconds": ("latency, ms", 1e3),
}
FEW_TICKS = 8
"""So many values that a study gives are all marked on their axis."""


@dataclass(frozen=True)
class Line:
    """A line of the table below a drawing: curve, net, and the two figures."""

    curve: str
    net: str
    x: str
    y: str


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        title: heading.
        legend: curves with their colours; empty for a single one.
        charts: ours, and what the lecture prints where it prints any.
        axes: titles of both axes, for the table.
        lines: all points in words.
    """

    title: str
    legend: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    axes: tuple[str, str]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class _Point:
    """A point of ours: mean place on both axes, and every seed's height."""

    curve: str
    net: str
    x: float
    y: Spread
    seeds: tuple[float, ...]


def lecture_figures(study: Study) -> list[Drawing]:
    """Draw every figure of a study of which at least two nets, or parts of a net, have finished runs."""
    drawings = (_drawing(figure, study) for figure in study.plan.figures)
    return [drawing for drawing in drawings if drawing is not None]


def _drawing(figure: LectureFigure, study: Study) -> Drawing | None:
    points = _points(figure, {variant.key: variant for variant in study.variants})
    if len({point.net for point in points}) < 2:
        return None
    x_title, y_title = figure.x_title or _axis(figure.x or "")[0], _axis(figure.y)[0]
    printed = [_as_printed(title) for title in figure.printed]
    names = list(dict.fromkeys([*(point.curve for point in points), *printed]))
    hues = {name: f"var(--hue-{number})" if number < HUES else REST for number, name in enumerate(names)}
    lines = [_our_line(point) for point in points]
    charts = [_our_chart(figure, points, hues, (x_title, y_title))]
    if figure.printed:
        charts.append(_printed_chart(figure, hues, (x_title, y_title)))
        lines += [
            Line(_as_printed(title), "", f"{x:g}", f"{y:g}") for title, made in figure.printed.items() for x, y in made
        ]
    legend = tuple(hues.items()) if len(hues) > 1 else ()
    return Drawing(figure.title, legend, tuple(charts), (x_title, y_title), tuple(lines))


def _points(figure: LectureFigure, variants: dict[str, Variant]) -> list[_Point]:
    """Return a point for each entry of which at least one run has both figures, each curve from left to right."""
    factor = _axis(figure.y)[1]
    points = []
    for curve, entries in figure.curves.items():
        found = []
        for entry in entries:
            key, part = entry.variant, entry.part
            heights = _figures(figure.y, variants[key], part)
            x = entry.x if figure.x is None else _mean(figure.x, variants[key])
            height = spread(factor * value for value in heights)
            if x is None or height is None or not _drawable(figure, x, heights):
                continue
            net = variants[key].title + (f", {part.replace('_', ' ')}" if part else "")
            found.append(_Point(curve, net, x, height, tuple(factor * value for value in heights)))
        points += sorted(found, key=lambda point: point.x)
    return points


def _mean(name: str, variant: Variant) -> float | None:
    found = spread(_figures(name, variant, None))
    return found.mean * _axis(name)[1] if found else None


def _drawable(figure: LectureFigure, x: float, heights: Sequence[float]) -> bool:
    above_zero = (x > 0 or "x" not in figure.log) and (min(heights) > 0 or "y" not in figure.log)
    return math.isfinite(x) and all(map(math.isfinite, heights)) and above_zero


def _figures(name: str, variant: Variant, part: str | None) -> list[float]:
    found = (run.value(Quantity(name, variant.key, part)) for run in variant.runs)
    return [value for value in found if value is not None]


def _as_printed(title: str) -> str:
    """Return the name of a printed curve, which may be called as one of ours is."""
    return f"{title}, printed"


def _axis(name: str) -> tuple[str, float]:
    """Return the title of an axis, and what a run's figure is multiplied by on it."""
    found = metric(name)
    return AXES.get(name, (f"test {found.axis}", found.factor))


def _our_line(point: _Point) -> Line:
    y = f"{point.y.mean:.4g}"
    if point.y.std:
        y += f" {PLUS_MINUS} {point.y.std:.2g}"
    return Line(point.curve, point.net, f"{point.x:.4g}", y)


# ---- charts ---------------------------------------------------------------------------------------------------------


def _our_chart(figure: LectureFigure, points: Sequence[_Point], hues: dict[str, str], axes: tuple[str, str]) -> Chart:
    rows: list[Row] = []
    for point in points:
        place = {"k": point.curve, "c": hues[point.curve], "x": short(point.x)}
        told = {"v": point.net, "t": _our_line(point).y, "o": count(point.y.n, "seed"), "w": f"{point.x:.4g}"}
        rows += [place | {"s": short(seed)} for seed in point.seeds if point.y.low < point.y.high]
        rows.append(place | told | {"y": short(point.y.mean)})
    description = f"{axes[1]} by {axes[0]}: {len(points)} points in {count(len(figure.curves), 'curve')}."
    return Chart("Ours", "Small dots are seeds.", _compiled(figure, rows, axes, description))


def _printed_chart(figure: LectureFigure, hues: dict[str, str], axes: tuple[str, str]) -> Chart:
    rows: list[Row] = [
        {"k": name, "c": hues[name], "x": x, "y": y, "v": name, "t": f"{y:g}", "o": "the lecture", "w": f"{x:g}"}
        for name, points in ((_as_printed(title), points) for title, points in figure.printed.items())
        for x, y in points
    ]
    description = f"{axes[1]} by {axes[0]} as printed: {len(rows)} points."
    return Chart("As the lecture prints it", "Other data and nets.", _compiled(figure, rows, axes, description))


def _compiled(figure: LectureFigure, rows: list[Row], axes: tuple[str, str], description: str) -> dict[str, Any]:
    base = alt.Chart(ROWS).encode(
        x=alt.X("x:Q", title=axes[0], **_axis_looks([row["x"] for row in rows], figure, "x")),
        color=COLOUR,
        detail="k:N",
    )
    y = {"title": axes[1], **_axis_looks([row["y" if "y" in row else "s"] for row in rows], figure, "y")}
    means = base.transform_filter("isValid(datum.y)").encode(y=alt.Y("y:Q", **y))
    lines = tooltip(k="curve", v="net", w=axes[0], t=axes[1], o="of")
    layers = [
        means.mark_line(aria=False, strokeWidth=1.5),
        means.mark_point(aria=False, filled=True, size=64, opacity=1).encode(tooltip=lines),
    ]
    if any("s" in row for row in rows):
        seeds = base.transform_filter("isValid(datum.s)").encode(y=alt.Y("s:Q", **y))
        layers.insert(0, seeds.mark_point(aria=False, filled=True, size=16, opacity=0.5))
    return compiled(layers, rows, capital(description))


def _axis_looks(values: list[float], figure: LectureFigure, axis: str) -> dict[str, Any]:
    """Return scale and ticks of an axis; the plan's own values are marked where they are few."""
    looks: dict[str, Any] = {"grid": axis == "y", "format": "~g", "tickCount": 6}
    if axis == "x" and figure.x is None and len(distinct := sorted(set(values))) <= FEW_TICKS:
        looks["values"] = distinct
    return {"scale": scale(values, log=axis in figure.log), "axis": alt.Axis(**looks)}
