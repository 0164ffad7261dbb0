"""The figures that the lecture draws, drawn of our runs, with what the lecture prints beside them.

Printed values belong to other data and larger nets. They have axes of their own, so that the courses can be compared;
both have the lecture's units: percent, millions, 10^6 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt

from convatlas.core.metrics import as_words, metric
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
    "latency": ("latency measured alone, ms", 1e3),
    "training_step": ("training step measured alone, ms", 1e3),
}
FEW_TICKS = 8
"""So many values that a study gives are all marked on their axis."""


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        title: heading.
        legend: curves with their colours; empty for a single one.
        charts: ours, and what the lecture prints where it prints any.
        axes: titles of both axes, for the table.
        lines: every point as text: curve, net, and its place on both axes.
    """

    title: str
    legend: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    axes: tuple[str, str]
    lines: tuple[tuple[str, str, str, str], ...]


def lecture_figures(study: Study) -> list[Drawing]:
    """Draw every figure of a study of which at least two nets, or parts of a net, have finished runs."""
    drawings = (_drawing(figure, study) for figure in study.plan.figures)
    return [drawing for drawing in drawings if drawing is not None]


def _drawing(figure: LectureFigure, study: Study) -> Drawing | None:
    ours, printed = _our_rows(figure, study), _printed_rows(figure)
    points = [row for row in ours if "y" in row]
    if len({row["v"] for row in points}) < 2:
        return None
    names = dict.fromkeys(row["k"] for row in [*points, *printed])
    hues = {name: f"var(--hue-{number})" if number < HUES else REST for number, name in enumerate(names)}
    x_title, y_title = axes = figure.x_title or _axis(figure.x or "")[0], _axis(figure.y)[0]
    description = f"{y_title} by {x_title}"
    of_curves = f"{len(points)} points in {count(len(figure.curves), 'curve')}"
    charts = [Chart("Ours", "Small dots are seeds.", _vega(figure, ours, hues, axes, f"{description}: {of_curves}."))]
    if printed:
        vega = _vega(figure, printed, hues, axes, f"{description} as printed: {len(printed)} points.")
        charts.append(Chart("As the lecture prints it", "Other data and nets.", vega))
    lines = [(row["k"], row["v"], row["w"], row["t"]) for row in [*points, *printed]]
    return Drawing(figure.title, tuple(hues.items()) if len(hues) > 1 else (), tuple(charts), axes, tuple(lines))


def _our_rows(figure: LectureFigure, study: Study) -> list[Row]:
    """Return a row for each point that at least one run has on both axes, and for each of its seeds where they differ.

    k (curve), v (net), x, y (mean) or s (seed); texts: w (x), t (y), o(f). Each curve goes from left to right.
    """
    variants = {variant.key: variant for variant in study.variants}
    factor = _axis(figure.y)[1]
    rows: list[Row] = []
    for curve, points in figure.curves.items():
        found: list[tuple[float, list[Row]]] = []
        for point in points:
            variant = variants.get(point.variant)
            x = point.x if figure.x is None or variant is None else _mean(figure.x, variant)
            seeds = [factor * value for value in _values(figure.y, variant, point.part)] if variant else []
            y = spread(seeds)
            if variant is None or x is None or y is None or not _drawable(figure, x, y):
                continue
            net = variant.title + (f", {as_words(point.part)}" if point.part else "")
            text = f"{y.mean:.4g}" + (f" {PLUS_MINUS} {y.std:.2g}" if y.std else "")
            place: Row = {"k": curve, "x": short(x)}
            shown = {"v": net, "w": f"{x:.4g}", "t": text, "o": count(y.n, "seed"), "y": short(y.mean)}
            of_seeds = [place | {"s": short(seed)} for seed in seeds if y.low < y.high]
            found.append((x, [*of_seeds, place | shown]))
        rows += [row for _, of_point in sorted(found, key=lambda pair: pair[0]) for row in of_point]
    return rows


def _printed_rows(figure: LectureFigure) -> list[Row]:
    """Return a row for each printed point; its curve may be called as one of ours is."""
    return [
        {"k": f"{title}, printed", "v": "", "x": x, "y": y, "w": f"{x:g}", "t": f"{y:g}", "o": "the lecture"}
        for title, points in figure.printed.items()
        for x, y in points
    ]


def _mean(name: str, variant: Variant) -> float | None:
    found = spread(_values(name, variant, None))
    return found.mean * _axis(name)[1] if found else None


def _drawable(figure: LectureFigure, x: float, y: Spread) -> bool:
    above_zero = (x > 0 or "x" not in figure.log) and (y.low > 0 or "y" not in figure.log)
    return math.isfinite(x) and y.is_finite and above_zero


def _values(name: str, variant: Variant, part: str | None) -> list[float]:
    found = (run.value(Quantity(name, variant.key, part)) for run in variant.runs)
    return [value for value in found if value is not None]


def _axis(name: str) -> tuple[str, float]:
    """Return the title of an axis, and what a run's value is multiplied by on it."""
    found = metric(name)
    return AXES.get(name, (f"test {found.axis}", found.factor))


def _vega(
    figure: LectureFigure, rows: list[Row], hues: dict[str, str], axes: tuple[str, str], description: str
) -> dict[str, Any]:
    rows = [row | {"c": hues[row["k"]]} for row in rows]
    x = alt.X("x:Q", title=axes[0], **_axis_looks([row["x"] for row in rows], figure, "x"))
    looks = {"title": axes[1], **_axis_looks([row["y" if "y" in row else "s"] for row in rows], figure, "y")}
    base = alt.Chart(ROWS).encode(x=x, color=COLOUR, detail="k:N")
    means = base.transform_filter("isValid(datum.y)").encode(y=alt.Y("y:Q", **looks))
    lines = tooltip(k="curve", v="net", w=axes[0], t=axes[1], o="of")
    layers = [
        means.mark_line(aria=False, strokeWidth=1.5),
        means.mark_point(aria=False, filled=True, size=64, opacity=1).encode(tooltip=lines),
    ]
    if any("s" in row for row in rows):
        seeds = base.transform_filter("isValid(datum.s)").encode(y=alt.Y("s:Q", **looks))
        layers.insert(0, seeds.mark_point(aria=False, filled=True, size=16, opacity=0.5))
    return compiled(layers, rows, capital(description))


def _axis_looks(values: list[float], figure: LectureFigure, axis: str) -> dict[str, Any]:
    """Return scale and ticks of an axis; the plan's own values are marked where they are few."""
    looks: dict[str, Any] = {"grid": axis == "y", "format": "~g", "tickCount": 6}
    if axis == "x" and figure.x is None and len(distinct := sorted(set(values))) <= FEW_TICKS:
        looks["values"] = distinct
    return {"scale": scale(values, log=axis in figure.log), "axis": alt.Axis(**looks)}
