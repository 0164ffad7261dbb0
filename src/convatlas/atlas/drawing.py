"""A graph of a net as an SVG, in the colours of the page that it stands on."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from convatlas.atlas.layout import lay_out
from convatlas.atlas.structure import Graph, Node
from convatlas.atlas.trace import Trace

__all__ = ["as_words", "draw", "shape_words"]

LINE, CHARACTER, MARGIN = 16.0, 6.7, 9.0
"""Height of a line, mean width of a character at 12 px, and what is left free at each side, in pixels."""
ROUND = 26.0
SMALLEST = 0.75
"""To what part of its size a drawing may shrink before it scrolls."""


@dataclass(frozen=True)
class _Box:
    """A node as it is drawn: its class in the style sheet, its lines, and its size in pixels."""

    style: str
    lines: tuple[tuple[str, str], ...]
    width: float
    height: float


def draw(trace: Trace, graph: Graph, title: str) -> str:
    """Return a graph as an SVG element; `title` says what it shows to those who cannot see it."""
    boxes = [_box(trace, node) for node in graph.nodes]
    edges = [(source, number) for number, node in enumerate(graph.nodes) for source in node.inputs]
    sizes = [(box.width, box.height) for box in boxes]
    layout = lay_out(sizes, edges, columns=_columns(trace, graph), nodesep="0.22", ranksep="0.3")
    curves = (f'<path class="flow" d="{c.path}"/><path class="tip" d="{c.tip}"/>' for c in layout.curves)
    drawn = (_node(box, node, *at) for box, node, at in zip(boxes, graph.nodes, layout.centres, strict=True))
    width, height = round(layout.width + 4), round(layout.height + 4)
    return (
        f'<svg class="net" xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f'viewBox="-2 -2 {width} {height}" style="min-width:{SMALLEST * width:.0f}px">'
        f"<title>{html.escape(title)}</title><desc>{html.escape(as_words(trace, graph))}</desc>"
        f"{''.join(curves)}{''.join(drawn)}</svg>"
    )


def _columns(trace: Trace, graph: Graph) -> list[list[int]]:
    """Return the nodes that stand straight below one another: the columns of a fractal, or else the longest way."""
    found: dict[str, list[int]] = {}
    of_node: dict[int, str] = {}
    for number, node in enumerate(graph.nodes):
        column = _list_in_list(trace, node)
        if column is None and node.kind == "chain" and len(node.inputs) == 1:
            column = of_node.get(node.inputs[0])  # what belongs to no list goes on in the column that leads to it
        if column is not None:
            of_node[number] = column
            found.setdefault(column, []).append(number)
    if len(found) > 1 and all(_lead_down(graph, column) for column in found.values()):
        return [found[column] for column in sorted(found)]
    way = _longest_way(graph)
    return [way] if 3 * len(way) >= 2 * len(graph.nodes) else []


def _lead_down(graph: Graph, column: Sequence[int]) -> bool:
    """Say whether each node of a column takes, by whatever way, what the one before it gives."""
    behind: list[set[int]] = []
    for number, node in enumerate(graph.nodes):
        behind.append({number}.union(*(behind[source] for source in node.inputs)))
    return all(upper in behind[lower] for upper, lower in pairwise(column))


def _list_in_list(trace: Trace, node: Node) -> str | None:
    """Return the name of the list that a node's modules stand in, where that is one of several lists in a list."""
    place = node.call or (trace.operations[node.start].call if node.end > node.start else 0)
    while place:
        column = trace.calls[place].name.rpartition(".")[0]
        lists = [trace.calls[0].module.get_submodule(name) for name in (column, column.rpartition(".")[0])]
        if all(isinstance(each, nn.ModuleList) for each in lists):
            return column
        place = trace.calls[place].parent
    return None


def _longest_way(graph: Graph) -> list[int]:
    """Return the way through most nodes, from the first to the last."""
    ways: list[list[int]] = []
    for number, node in enumerate(graph.nodes):
        before = max((ways[source] for source in node.inputs), key=len, default=[])
        ways.append([*before, number])
    return max(ways, key=len, default=[])


def as_words(trace: Trace, graph: Graph) -> str:
    """Say in words what a graph shows, node by node."""
    parts = []
    for number, node in enumerate(graph.nodes, 1):
        lines = [text if times == 1 else f"{text} × {times}" for text, times in node.lines]
        words = ", ".join(filter(None, [node.title, *lines])) or trace.operations[node.end - 1].text
        repeats = f" × {node.repeats}" if node.kind == "block" and node.repeats > 1 else ""
        sources = " and ".join(str(source + 1) for source in node.inputs)
        shape = shape_words(trace, node)
        parts.append(", ".join(filter(None, [f"{number}: {words}{repeats}", shape, sources and f"of {sources}"])))
    return "; ".join(parts) + "."


def shape_words(trace: Trace, node: Node) -> str:
    """Write the shape of a node's result; nothing for boxes, whose number depends on the image, and for weights."""
    operations = trace.operations[node.start : node.end]
    seen = operations[-1].field if operations else None
    is_map = not any(each.kind == "boxes" for each in operations) and (seen is None or seen.height)
    return " × ".join(map(str, node.shape)) if is_map else ""


def _box(trace: Trace, node: Node) -> _Box:
    if node.kind in {"join", "split"}:
        sign = trace.operations[node.end - 1].text
        return _Box(node.kind, (("sign", sign),), max(ROUND, len(sign) * CHARACTER + 12), ROUND)
    lines = [("line", text if times == 1 else f"{text}  × {times}") for text, times in node.lines]
    if node.title:
        repeats = f"  × {node.repeats}" if node.repeats > 1 else ""
        lines.insert(0, ("head", node.title + repeats))
    elif node.repeats > 1 and (node.shared or len(node.lines) > 1):
        lines.insert(0, ("head", f"{node.repeats} times{', the same weights' if node.shared else ''}"))
    if shape := shape_words(trace, node):
        lines.append(("shape", shape))
    style = node.kind if node.kind != "chain" else f"chain {_weightiest(trace, node)}"
    width = max(len(text) * CHARACTER * (1.12 if role == "head" else 1) for role, text in lines) + 2 * MARGIN
    return _Box(style, tuple(lines), width, len(lines) * LINE + MARGIN)


def _weightiest(trace: Trace, node: Node) -> str:
    kinds = {operation.kind for operation in trace.operations[node.start : node.end]}
    return next((kind for kind in ("conv", "linear", "pool", "resize") if kind in kinds), "light")


def _node(box: _Box, node: Node, x: float, y: float) -> str:
    left, top = x - box.width / 2, y - box.height / 2
    radius = ROUND / 2 if node.kind in {"join", "split"} else 5
    shape = f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{radius:.0f}"/>'
    behind = ""
    if node.repeats > 1 and any(role == "head" for role, _ in box.lines):
        behind = shape.replace("<rect", '<rect class="behind" transform="translate(4 -4)"')
    first = y - (len(box.lines) - 1) * LINE / 2 + 4
    texts = "".join(
        f'<text class="{role}" x="{x:.1f}" y="{first + number * LINE:.1f}">{html.escape(text)}</text>'
        for number, (role, text) in enumerate(box.lines)
    )
    return f'<g class="{box.style}">{behind}{shape}{texts}</g>'
