"""Pictures of what was found."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from convatlas.models.classification.nasnet import CELLS
from convatlas.search.drawing import as_svg, darts_graph, draw_architecture, nasnet_graph


def test_a_nasnet_cell_shows_every_operation_and_concatenates_what_is_unused():
    graph = nasnet_graph([["max_3x3", 0, "identity", 1, "add"], ["conv_1x1", 0, "conv_3x3", 0, "concat"]])
    assert graph.nodes == [[("max_3x3", 0), ("identity", 1)], [("conv_1x1", 0), ("conv_3x3", 0)]]
    assert (graph.outputs, graph.signs) == ([2, 3], ["+", "&"])


def test_a_darts_cell_counts_its_inputs_the_other_way_round():
    graph = darts_graph([[["skip_connect", 0], ["sep_conv_3x3", 1]], [["max_pool_3x3", 2], ["skip_connect", 1]]])
    assert graph.nodes == [[("skip_connect", 1), ("sep_conv_3x3", 0)], [("max_pool_3x3", 2), ("skip_connect", 0)]]
    assert graph.outputs == [2, 3]


def test_a_picture_is_the_same_svg_twice():
    cells = {n: {"blocks": [list(block) for block in w.blocks]} for n, w in CELLS["nasnet_a"]._asdict().items()}
    architecture = {"family": "nasnet", "net": {"cells": cells}}
    one, other = (as_svg(draw_architecture(architecture)) for _ in range(2))
    assert one == other
    assert ET.fromstring(one).tag.endswith("svg")
    assert one.count("separable") >= 10  # text is kept readable as comments beside its outlines


def test_a_family_without_a_picture_has_none():
    assert draw_architecture({"family": "efficientnet", "net": {}}) is None
