"""What a card shows of a net itself, as plain values: its drawings and its stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch

from convatlas.atlas.drawing import draw, shape_words
from convatlas.atlas.operations import JOINS
from convatlas.atlas.structure import Graph, Node, expanded_blocks, whole_net
from convatlas.atlas.trace import Trace, trace_net
from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters

__all__ = ["anatomy"]

Plain = dict[str, Any]
"""Values as JSON has them."""


def anatomy(net: Plain) -> Plain:
    """Draw a net from its sections `about` and `model`.

    Returns:
        `whole`, an SVG; `blocks`, each with `title`, `module` (the name of the first that is one) and `svg`; `stages`,
        see `_stages`; `convolutions`, `joins`, `parameters`, `macs` and `stored_bytes` of the whole net, for one image.
    """
    torch.set_num_threads(1)
    title = net["about"]["title"]
    trace = trace_net(lambda: build_model(net["model"]), net["about"]["input_size"])
    graph = whole_net(trace)
    blocks = []
    for node, inside in expanded_blocks(trace, graph):
        times = f" × {node.repeats}" if node.repeats > 1 else ""
        name = ", ".join(filter(None, [node.title + times, shape_words(trace, node)]))
        module = trace.calls[node.call].name if node.call is not None else ""
        svg = draw(trace, inside, f"{name}: what is inside, of {title}")
        blocks.append({"title": name, "module": module, "svg": svg})
    return {
        "whole": draw(trace, graph, f"{title}: the whole net"),
        "blocks": blocks,
        "stages": _stages(trace, graph),
        "convolutions": sum(operation.kind == "conv" for operation in trace.operations),
        "joins": sum(operation.kind in JOINS for operation in trace.operations),
        "parameters": count_parameters(trace.calls[0].module),
        "macs": sum(operation.macs for operation in trace.operations),
        "stored_bytes": sum(operation.stored for operation in trace.operations),
    }


def _stages(trace: Trace, graph: Graph) -> list[Plain]:
    """Sum up the nodes of a drawing that follow one another and have maps of one size.

    Each stage has `what` (its blocks and layers), `shape` of its last result ("" for weights and boxes),
    `convolutions`, `parameters`, `macs`, `stored_bytes`, and `field`: height and width of what a value sees, null for
    the whole image, 0 for none of it.
    """
    nodes = [node for node in graph.nodes if node.end > node.start]
    stages = []
    for _, found in groupby(nodes, key=lambda node: node.shape[1:]):
        stage = list(found)
        operations = [each for node in stage for each in trace.operations[node.start : node.end]]
        seen = operations[-1].field
        stages.append(
            {
                "what": "; ".join(_contents(stage)),
                "shape": shape_words(trace, stage[-1]),
                "convolutions": sum(each.kind == "conv" for each in operations),
                "parameters": sum(each.parameters for each in operations),
                "macs": sum(each.macs for each in operations),
                "stored_bytes": sum(each.stored for each in operations),
                "field": None if seen is None else [round(seen.height), round(seen.width)],
            }
        )
    return stages


def _contents(stage: Iterable[Node]) -> Iterator[str]:
    """Give the blocks and chains of a stage; equal ones that follow one another are counted."""
    named = (node for node in stage if node.title or node.lines)
    for words, found in groupby(named, key=lambda node: node.title or ", ".join(_short(node))):
        nodes = list(found)
        times = sum(node.repeats if node.title else 1 for node in nodes)
        yield words + (f" × {times}" if times > 1 else "")


def _short(node: Node) -> Iterator[str]:
    """Give the lines of a chain without normalisation and activation."""
    for text, times in node.lines:
        yield text.partition(" · ")[0] + (f" × {times}" if times > 1 else "")
