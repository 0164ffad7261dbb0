"""The map: families of nets by year, and on each edge the idea that one took from another."""

from __future__ import annotations

import html
from collections.abc import Mapping

from convatlas.atlas.layout import lay_out
from convatlas.atlas.lineage import Family, Lineage

__all__ = ["draw_map"]

CHARACTER, SMALL = 7.3, 5.5
"""Mean width of a character of a title and of an edge's label, in pixels."""
LONG = 12
"""From so many characters on a label has two lines."""
TOP, SIDE = 14, 46
"""Room above the first row, and for the years."""


def draw_map(lineage: Lineage, links: Mapping[str, str]) -> str:
    """Return the map as an SVG element; `links` has the address of a card of each family that has one.

    Families and edges carry their year, task, ideas and ends as data, by which a script of the page filters them.
    """
    names = list(lineage.families)
    place = {name: number for number, name in enumerate(names)}
    edges = [(parent, name, edge) for name in names for edge in lineage.families[name].parents for parent in [edge.net]]
    rows: dict[tuple[int, int], list[int]] = {}
    for name in names:
        rows.setdefault((lineage.families[name].year, _steps(lineage, name)), []).append(place[name])
    ordered = sorted(rows)
    boxes = [(len(lineage.families[name].title) * CHARACTER + 20, 28.0) for name in names]
    layout = lay_out(
        boxes,
        [(place[source], place[target]) for source, target, _ in edges],
        labels=[(max(map(len, _folded(edge.by))) * SMALL + 6, 12.0 * len(_folded(edge.by))) for _, _, edge in edges],
        rows=[rows[key] for key in ordered],
        nodesep="0.08",
        ranksep="0.16",
    )
    parts = []
    seen: set[int] = set()
    for key in ordered:
        y = layout.centres[rows[key][0]][1]
        if key[0] not in seen:
            parts.append(f'<text class="when" x="0" y="{y + 4:.1f}">{key[0]}</text>')
            seen.add(key[0])
    for (source, target, edge), curve in zip(edges, layout.curves, strict=True):
        assert curve.label is not None
        x, y = curve.label
        parts.append(
            f'<g class="edge" data-from="{source}" data-to="{target}" data-idea="{edge.idea}">'
            f'<path class="flow" d="{curve.path}" transform="translate({SIDE} 0)"/>'
            f'<path class="tip" d="{curve.tip}" transform="translate({SIDE} 0)"/>'
            f'<text class="by{" lecture" if edge.lecture else ""}">{_lines(edge.by, x + SIDE, y)}</text></g>'
        )
    for name, (width, height), (x, y) in zip(names, boxes, layout.centres, strict=True):
        family = lineage.families[name]
        ideas = " ".join(dict.fromkeys(edge.idea for edge in family.parents))
        parts.append(
            f'<a class="family {family.task}"{_href(links.get(name))} data-family="{name}" data-year="{family.year}" '
            f'data-task="{family.task}" data-idea="{ideas}" aria-label="{html.escape(_spoken(lineage, family))}">'
            f'<rect x="{x - width / 2 + SIDE:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="6"/><text x="{x + SIDE:.1f}" y="{y + 4.5:.1f}">{html.escape(family.title)}</text></a>'
        )
    size = (round(layout.width + SIDE + 6), round(layout.height + TOP))
    return (
        f'<svg class="map" xmlns="http://www.w3.org/2000/svg" role="group" aria-label="How the nets grew out of one '
        f'another" width="{size[0]}" height="{size[1]}" viewBox="-2 -6 {size[0]} {size[1]}">{"".join(parts)}</svg>'
    )


def _href(link: str | None) -> str:
    return f' href="{link}"' if link else ""


def _folded(text: str) -> list[str]:
    """Fold a longer text at the space nearest to its middle."""
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    if len(text) < LONG or not spaces:
        return [text]
    middle = min(spaces, key=lambda place: abs(place - len(text) / 2))
    return [text[:middle], text[middle + 1 :]]


def _lines(text: str, x: float, y: float) -> str:
    lines = _folded(text)
    first = y + 3.5 - 6 * (len(lines) - 1)
    return "".join(
        f'<tspan x="{x:.1f}" y="{first + 12 * number:.1f}">{html.escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )


def _steps(lineage: Lineage, name: str) -> int:
    """Return how many families of the same year a family stands below."""
    family = lineage.families[name]
    same = [edge.net for edge in family.parents if lineage.families[edge.net].year == family.year]
    return max((_steps(lineage, parent) + 1 for parent in same), default=0)


def _spoken(lineage: Lineage, family: Family) -> str:
    grew = " and ".join(f"{lineage.families[edge.net].title}: {edge.by}" for edge in family.parents)
    return f"{family.title}, {family.year}, {family.task}" + (f", out of {grew}" if grew else "")
