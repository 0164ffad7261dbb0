"""Where boxes and the curves between them go, by Graphviz's dot.

Graphviz comes inside the wheels of pygraphviz, so no program has to be installed. It gets boxes and labels of a known
size, so that no font of this machine decides anything; text and colours are left to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pygraphviz

__all__ = ["Curve", "Layout", "lay_out"]

INCH = 72.0
TIP = 3.2
"""Half the width of an arrow's tip."""

Size = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """An edge: the `d` of its path and of its tip, and the centre of its label."""

    path: str
    tip: str
    label: Point | None


@dataclass(frozen=True)
class Layout:
    """Width and height of the whole, the centre of each box from its upper left corner, and a curve for each edge."""

    width: float
    height: float
    centres: list[Point]
    curves: list[Curve]


def lay_out(
    boxes: Sequence[Size],
    edges: Sequence[tuple[int, int]],
    *,
    labels: Sequence[Size] = (),
    rows: Sequence[Sequence[int]] = (),
    columns: Sequence[Sequence[int]] = (),
    **attributes: str,
) -> Layout:
    """Place boxes below the ones that lead to them.

    Args:
        boxes: width and height of each, in pixels.
        edges: from which box to which, by their numbers.
        labels: width and height of each edge's label; empty where there are none.
        rows: boxes that stand beside one another, the first row at the top; empty lets the edges decide.
        columns: boxes that stand straight below one another, the first column at the left if they begin on one row.
        attributes: of Graphviz's graph.
    """
    graph = pygraphviz.AGraph(directed=True, strict=False, rankdir="TB", splines="true", **attributes)
    graph.node_attr.update(label="", fixedsize="true", shape="box")
    for number, (width, height) in enumerate(boxes):
        graph.add_node(number, width=f"{width / INCH:.4f}", height=f"{height / INCH:.4f}")
    for number, (source, target) in enumerate(edges):
        label = {"label": _space(*labels[number])} if labels else {}
        graph.add_edge(source, target, key=str(number), **label)
    for number, row in enumerate(rows):
        graph.add_node(f"row {number}", shape="point", width="0.01", height="0.01", style="invis")
        graph.add_subgraph([f"row {number}", *row], rank="same")
        if number:
            graph.add_edge(f"row {number - 1}", f"row {number}", key=f"row {number}", style="invis", weight="10")
    for number, column in enumerate(columns):
        for box in column:
            graph.get_node(box).attr["group"] = f"column {number}"
        for upper, lower in pairwise(column):
            graph.add_edge(upper, lower, key=f"column {number}, {upper}", style="invis", weight="20")
    if len(columns) > 1:
        graph.add_subgraph([column[0] for column in columns], rank="same")
        for left, right in pairwise(columns):
            graph.add_edge(left[0], right[0], key=f"left of {right[0]}", style="invis")
    graph.layout(prog="dot")
    _, _, width, height = _numbers(graph.graph_attr["bb"])
    curves = [_curve(graph.get_edge(*edge, key=str(number)), height) for number, edge in enumerate(edges)]
    centres = [_point(graph.get_node(number).attr["pos"], height) for number in range(len(boxes))]
    return Layout(width, height, centres, curves)


def _space(width: float, height: float) -> str:
    """Return a label that is nothing but space."""
    size = f'WIDTH="{width:.0f}" HEIGHT="{height:.0f}"'
    return f'<<TABLE BORDER="0" CELLSPACING="0" FIXEDSIZE="TRUE" {size}><TR><TD></TD></TR></TABLE>>'


def _curve(edge: Any, height: float) -> Curve:
    """Read a curve of Graphviz, `e,x,y x,y ...`: the end of its tip, then the points of the curve."""
    parts = edge.attr["pos"].split()
    points = [_point(part, height) for part in parts if part[0] not in "es"]
    end = next((_point(part[2:], height) for part in parts if part[0] == "e"), points[-1])
    path = f"M{_text(points[0])}C{' '.join(map(_text, points[1:]))}"
    label = edge.attr["lp"]
    return Curve(path, _tip(points[-1], end), _point(label, height) if label else None)


def _tip(base: Point, end: Point) -> str:
    dx, dy = end[0] - base[0], end[1] - base[1]
    length = max((dx**2 + dy**2) ** 0.5, 1e-6)
    aside = (-dy / length * TIP, dx / length * TIP)
    left, right = ((base[0] + side * aside[0], base[1] + side * aside[1]) for side in (1, -1))
    return f"M{_text(left)}L{_text(end)}L{_text(right)}Z"


def _point(text: str, height: float) -> Point:
    x, y = _numbers(text)
    return x, height - y


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _text(point: Point) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"
