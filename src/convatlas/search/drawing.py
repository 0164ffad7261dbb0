"""Pictures of a search: found layers as a row of blocks, found cells as graphs, and how the search went."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from convatlas.models.classification.fbnet import BLOCKS, SKIP
from convatlas.models.classification.nasnet import Block, unused_states
from convatlas.search.strategy import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, BLUE, ORANGE = "#1d2127", "#8a9099", "#1f6fb2", "#d1571b"
EXPANSION_COLOURS = {1: "#cfe0ee", 3: "#7fb0d8", 6: "#1f6fb2"}


def draw_architecture(architecture: Mapping[str, Any]) -> Figure | None:
    """Draw what an architecture file holds; None for a family that has nothing to draw."""
    net = architecture["net"]
    if architecture["family"] == "fbnet":
        return draw_layers(net["blocks"])
    if architecture["family"] == "nasnet":
        return draw_cells({name: nasnet_graph(cell["blocks"]) for name, cell in net["cells"].items()})
    if architecture["family"] == "darts":
        return draw_cells({name: darts_graph(nodes) for name, nodes in net["genotype"].items()})
    return None


def draw_layers(blocks: Sequence[Sequence[str]]) -> Figure:
    """Draw one box a layer, as figure 4 of the FBNet paper: its height is the kernel, its colour the expansion."""
    from matplotlib.patches import Rectangle

    names = [(stage, name) for stage, layers in enumerate(blocks, start=1) for name in layers]
    figure, (axes,) = _figure(max(5.0, 0.75 * len(names)), 2.4)
    for place, (_, name) in enumerate(names):
        kind = None if name == SKIP else BLOCKS[name]
        height = 0.25 if kind is None else kind.kernel
        colour = "none" if kind is None else EXPANSION_COLOURS.get(kind.expansion, BLUE)
        style = "--" if kind is None else "-"
        axes.add_patch(Rectangle((place + 0.1, 0), 0.8, height, facecolor=colour, edgecolor=INK, linestyle=style))
        axes.text(place + 0.5, height + 0.2, name.replace("_", "\n"), ha="center", va="bottom", fontsize=8, color=INK)
    first = 0
    for stage, layers in enumerate(blocks, start=1):
        axes.text(first + len(layers) / 2, -0.5, f"stage {stage}", ha="center", va="top", fontsize=8, color=SOFT)
        first += len(layers)
        axes.axvline(first, color=SOFT, linewidth=0.5, linestyle=":")
    axes.set(xlim=(0, len(names)), ylim=(-1.5, 8.5))
    return figure


class CellGraph(NamedTuple):
    """A cell to be drawn; states 0 and 1 are its input and the output before, and each node makes one more."""

    nodes: list[list[tuple[str, int]]]  # for every node its operations, each with the state it takes
    outputs: list[int]  # the states that are concatenated
    signs: list[str]  # for every node how its operations are combined


def nasnet_graph(blocks: Sequence[Sequence[Any]]) -> CellGraph:
    """Return a NASNet cell, given as in an architecture file."""
    found = [Block(*block) for block in blocks]
    nodes = [[(block.left, block.left_state), (block.right, block.right_state)] for block in found]
    return CellGraph(nodes, list(unused_states(found)), ["+" if block.combination == "add" else "&" for block in found])


def darts_graph(nodes: Sequence[Sequence[Sequence[Any]]]) -> CellGraph:
    """Return a DARTS cell, whose nodes are all concatenated; an input is number 0 or 1 from the back."""
    swapped = {0: 1, 1: 0}  # state 0 of DARTS is the output before the last
    edges = [[(name, swapped.get(state, state)) for name, state in node] for node in nodes]
    return CellGraph(edges, list(range(2, len(nodes) + 2)), ["+"] * len(nodes))


def draw_cells(cells: Mapping[str, CellGraph]) -> Figure:
    """Draw each cell as a graph from the bottom to the top: operations are boxes, what combines them circles."""
    levels = max(max(_levels(cell)) for cell in cells.values())
    widest = max(len(cell.nodes) for cell in cells.values())
    figure, axes = _figure(max(6.0, 2.3 * widest), (1.4 * levels + 1.6) * len(cells), rows=len(cells))
    for place, (name, cell) in zip(axes, cells.items(), strict=True):
        place.set_title(f"{name} cell", loc="left", fontsize=10, color=INK)
        _draw_cell(place, cell)
    return figure


def _levels(cell: CellGraph) -> list[int]:
    """Return for every state how many nodes lie on the longest way to it."""
    levels = [0, 0]
    for node in cell.nodes:
        levels.append(1 + max(levels[state] for _, state in node))
    return levels


def _draw_cell(axes: Axes, cell: CellGraph) -> None:
    levels = _levels(cell)
    width = 4.0
    places = {0: (width * (len(cell.nodes) - 1) / 4, 0.0), 1: (width * (len(cell.nodes) - 1) * 3 / 4 + 1, 0.0)}
    words = {0: "in", 1: "before"}
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for made, (node, sign) in enumerate(zip(cell.nodes, cell.signs, strict=True), start=2):
        height = 2.4 * levels[made]
        places[made], words[made] = (width * (made - 2), height), sign
        for number, (name, state) in enumerate(node):
            box = (width * (made - 2) + 1.9 * (number - (len(node) - 1) / 2), height - 1.0)
            lines += [(places[state], box), (box, places[made])]
            axes.text(*box, name.replace("_", "\n", 1), ha="center", va="center", fontsize=7, zorder=3,
                      bbox={"boxstyle": "round,pad=0.3", "facecolor": "#dfeaf4", "edgecolor": BLUE})  # fmt: skip
    top = (width * (len(cell.nodes) - 1) / 2, 2.4 * (max(levels) + 0.8))
    lines += [(places[state], top) for state in cell.outputs]
    for start, end in lines:
        axes.plot(*zip(start, end, strict=True), color=SOFT, linewidth=0.9, zorder=1)
    for state, place in places.items():
        axes.text(*place, words[state], ha="center", va="center", fontsize=8, bbox=_circle("#ffffff"), zorder=3)
    axes.text(*top, "concatenate", ha="center", va="center", fontsize=8, bbox=_circle("#e3e3dd"), zorder=3)
    axes.set(xlim=(-2.4, width * (len(cell.nodes) - 1) + 2.4), ylim=(-0.8, top[1] + 0.8))


def _circle(colour: str) -> dict[str, Any]:
    return {"boxstyle": "round,pad=0.35,rounding_size=0.9", "facecolor": colour, "edgecolor": INK}


def draw_course(rows: Mapping[str, Sequence[Row]]) -> Figure:
    """Draw the reward of every sampled net, and of the search the distribution's entropy where it has one."""
    figure, (rewards, entropies) = _figure(9, 3.2, columns=2)
    for (name, found), colour in zip(rows.items(), (BLUE, ORANGE), strict=False):
        values = [row["reward"] for row in found if "reward" in row]
        rewards.plot(range(1, len(values) + 1), values, ".", color=colour, label=name)
    rewards.set(xlabel="sampled net", ylabel="reward")
    rewards.legend(frameon=False)
    rewards.set_axis_on()
    if course := [(row["step"] + 1, row["entropy"]) for row in rows.get("search", ()) if "entropy" in row]:
        entropies.plot(*zip(*course, strict=True), color=BLUE)
        entropies.set(xlabel="step", ylabel="entropy of the distribution")
        entropies.set_axis_on()
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG text; the same figure gives the same text."""
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "convatlas"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Make a figure that no window owns, and its plots, without axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="tight")
    plots = figure.subplots(rows, columns, squeeze=False).ravel()
    for plot in plots:
        plot.set_axis_off()
    return figure, plots
