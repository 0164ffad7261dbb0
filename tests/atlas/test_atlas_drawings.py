"""The drawings of the atlas hold what the modules compute: convolutions, joins, widths, costs, receptive fields."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import suppress
from functools import cache
from itertools import combinations
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from convatlas.atlas.anatomy import anatomy
from convatlas.atlas.drawing import draw
from convatlas.atlas.nets import read_nets
from convatlas.atlas.structure import Graph, expanded_blocks, whole_net
from convatlas.atlas.study_drawings import DRAWINGS, Block, drawing
from convatlas.atlas.trace import Trace, trace_net
from convatlas.core.errors import UserError
from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters, is_detector, multiply_adds, on_meta_device
from convatlas.models.interfaces import HasDenseOutputs, auxiliary_loss_weights
from helpers import ROOT

NETS = read_nets()
GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "models" / "golden_costs.json").read_text())
FAST = (
    "fractalnet_small",
    "googlenet_small",
    "hyper_wide_resnet_small",
    "resnet_cifar",
    "shufflenet_v2_small",
    "unet_small",
)
ONE_TO_A_READER = {"lenet5": 2}
"""LeNet-5's sparse layer is computed as three convolutions and drawn as the one that it is."""


def every_net(names=tuple(NETS)) -> list[Any]:
    """All nets; but for a few small ones they belong to the slow tests."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@cache
def traced(name: str) -> Trace:
    net = NETS[name]
    return trace_net(lambda: build_model(net["model"]), net["about"]["input_size"])


@cache
def drawn(name: str) -> dict[str, Any]:
    return anatomy(NETS[name])


@cache
def whole(name: str) -> Graph:
    return whole_net(traced(name))


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that reach torch's kernels."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def run_counted(name: str) -> tuple[int, dict[str, list[tuple[int, ...]]]]:
    """Run a net on the meta device; return its convolutions and the shapes of every module's results, by name."""
    net = on_meta_device(lambda: build_model(NETS[name]["model"]))
    trains = bool(auxiliary_loss_weights(net))
    images = torch.zeros(2 if trains else 1, *NETS[name]["about"]["input_size"], device="meta")
    shapes: dict[str, list[tuple[int, ...]]] = {}
    names = {module: key for key, module in net.named_modules()}

    def note(module, _inputs, output):
        if isinstance(output, torch.Tensor) and module in names:
            shapes.setdefault(names[module], []).append(tuple(output.shape[1:]))

    handle = register_module_forward_hook(note)
    net.train(trains)
    counter = Convolutions()
    try:
        with counter, torch.no_grad():
            if isinstance(net, HasDenseOutputs):
                net.dense_outputs(images)
            elif is_detector(net):
                with suppress(RuntimeError, NotImplementedError):
                    net(list(images))
            else:
                net(images)
    finally:
        handle.remove()
    return counter.count, shapes


def boxes_of(svg: str) -> list[list[str]]:
    """Return the lines of each box of a drawing."""
    root = ET.fromstring(svg)
    groups = root.findall(".//{http://www.w3.org/2000/svg}g")
    return [["".join(text.itertext()) for text in group if text.tag.endswith("text")] for group in groups]


def rectangles(svg: str) -> list[tuple[float, ...]]:
    """Return x, y, width and height of each box, without the one that stands behind it for its repetitions."""
    found = re.findall(r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.]+)" height="([\d.]+)"', svg)
    return [tuple(map(float, each)) for each in found]


def overlapping(svg: str) -> list[tuple[Any, Any]]:
    def apart(one, other):
        return any(one[i] + one[i + 2] <= other[i] or other[i] + other[i + 2] <= one[i] for i in (0, 1))

    return [pair for pair in combinations(rectangles(svg), 2) if not apart(*pair)]


def convolutions_drawn(svg: str) -> int:
    """Count the convolutions that the words of a drawing speak of."""
    total = 0
    for lines in boxes_of(svg):
        times = re.match(r"(\d+) times", lines[0])
        head = re.search(r"  × (\d+)$", lines[0])
        is_conv = re.compile(r"\d+×\d+ (conv|depthwise|up-conv), ")
        found = 0
        for line in lines:
            number = re.match(r"(\d+) convolutions$", line)
            repeats = re.search(r"  × (\d+)$", line)
            convs = int(number[1]) if number else len(is_conv.findall(line))
            found += convs * (int(repeats[1]) if repeats else 1)
        title_repeats = int(head[1]) if head and not is_conv.search(lines[0]) else int(times[1]) if times else 1
        total += found * title_repeats
    return total


@pytest.mark.parametrize("name", every_net())
def test_a_drawing_has_the_convolutions_of_the_module(name):
    trace = traced(name)
    counted = sum(operation.kind == "conv" for operation in trace.operations)
    run, shapes = run_counted(name)
    assert counted == run - ONE_TO_A_READER.get(name, 0)
    assert convolutions_drawn(draw(trace, whole(name), name)) == counted
    for number, node in enumerate(whole(name).nodes):
        inner = range(node.start, node.end - 1) if node.kind == "chain" else ()
        assert all(taker < node.end for place in inner for taker in trace.takers[place]), "a chain has one end"
        assert node.inputs or number == 0 or "hyper" in name
        if node.call is not None and (module := trace.calls[node.call].name) in shapes:
            assert node.shape in shapes[module] or node.repeats > 1


@pytest.mark.parametrize("name", every_net())
def test_costs_by_stage_add_up_to_those_of_the_net(name):
    found = drawn(name)
    assert found["parameters"] == GOLDEN[name]["parameters"]
    net = on_meta_device(lambda: build_model(NETS[name]["model"]))
    of_weights = multiply_adds(net, NETS[name]["about"]["input_size"])[2] if "hyper" in name else 0
    assert found["macs"] == GOLDEN[name]["macs"] + of_weights
    assert sum(stage["parameters"] for stage in found["stages"]) <= count_parameters(net)
    assert sum(stage["macs"] for stage in found["stages"]) == found["macs"]
    assert sum(stage["convolutions"] for stage in found["stages"]) == found["convolutions"]
    drawings = [found["whole"], *(block["svg"] for block in found["blocks"])]
    assert sum(map(len, drawings)) < 300_000
    assert [pair for svg in drawings for pair in overlapping(svg)] == []


@pytest.mark.parametrize(
    ("name", "joins"),
    [
        ("resnet_cifar", {"add": 9}),
        ("unet_small", {"concat": 4}),
        ("googlenet_small", {"concat": 9}),
        pytest.param("resnet50", {"add": 16}, marks=pytest.mark.slow),
        pytest.param("densenet121", {"concat": 58}, marks=pytest.mark.slow),
        pytest.param("squeezenet", {"concat": 8}, marks=pytest.mark.slow),
        pytest.param("nasnet_mobile", {"add": 80, "concat": 20}, marks=pytest.mark.slow),
    ],
)
def test_joins_are_those_of_the_paper(name, joins):
    found = Counter(o.kind for o in traced(name).operations if o.kind in {"add", "concat", "multiply", "stack"})
    assert found == joins


def titles(name: str) -> list[str]:
    return [f"{node.title} × {node.repeats}" for node in whole(name).nodes if node.kind == "block"]


def test_equal_blocks_stand_once_with_their_number():
    assert titles("resnet_cifar") == ["basic block × 3", *["basic block × 1", "basic block × 2"] * 2]
    assert [node.shape for node in whole("resnet_cifar").nodes] == [
        (3, 32, 32),
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (32, 16, 16),
        (64, 8, 8),
        (64, 8, 8),
        (10,),
    ]


def test_a_fractal_block_has_its_columns_and_means():
    (node, inside), *_ = expanded_blocks(traced("fractalnet_small"), whole("fractalnet_small"))
    assert node.title == "fractal block"
    joins = [each for each in inside.nodes if each.kind == "join"]
    assert [len(join.inputs) for join in joins] == [2, 3]
    svg = draw(traced("fractalnet_small"), inside, "")
    assert [lines for lines in boxes_of(svg) if lines[0] in {"+", "mean"}] == [["mean"], ["mean"]]
    assert convolutions_drawn(svg) == 7


def test_the_columns_of_a_fractal_stand_straight_from_shallow_to_deep():
    svg = next(block["svg"] for block in drawn("fractalnet")["blocks"])
    boxes = zip(boxes_of(svg), rectangles(svg), strict=True)
    columns = Counter(round(x + width / 2) for lines, (x, _, width, _) in boxes if "3×3 conv" in lines[0])
    assert [number for _, number in sorted(columns.items())] == [1, 2, 4]


def test_two_couplings_have_both_streams():
    (block,) = (each for each in drawn("revnet_cifar")["blocks"] if each["module"] == "stages.0.units.0.g")
    assert block["title"] == "coupling × 2, 16 × 32 × 32"
    words = [lines[0] for lines in boxes_of(block["svg"])]
    assert Counter(words) == {"input": 2, "BN · ReLU": 2, "+": 2, "output": 2}


def test_three_dense_layers_take_all_before_them():
    trace, graph = traced("densenet_cifar"), whole("densenet_cifar")
    node, inside = expanded_blocks(trace, graph)[0]
    assert (node.title, node.repeats) == ("dense layer", 3)
    assert [len(each.inputs) for each in inside.nodes if each.kind == "join"] == [2, 3, 4]


def test_the_parts_of_a_split_are_told_apart():
    (unit,) = (each for each in drawn("shufflenet_v2_small")["blocks"] if each["title"].startswith("shuffle unit"))
    channels = int(unit["title"].split()[2])
    halves = {f"channels 1 to {channels // 2}", f"channels {channels // 2 + 1} to {channels}"}
    assert halves <= {lines[0] for lines in boxes_of(unit["svg"])}


def test_what_is_made_of_weights_sees_nothing_of_the_image():
    first, second, *_ = drawn("hyper_wide_resnet_small")["stages"]
    assert (first["what"], first["field"], first["shape"]) == ("generated kernels", [0, 0], "")
    assert second["field"][0] > 3


def test_the_arms_of_a_u_net_are_joined_across():
    nodes = whole("unet_small").nodes
    joins = [node for node in nodes if node.kind == "join"]
    sides = [sorted(nodes[source].shape[-1] for source in join.inputs) for join in joins]
    assert len(joins) == 4
    assert all(one == other for one, other in sides)


def test_generated_kernels_lead_to_the_convolutions_that_use_them():
    nodes = whole("hyper_wide_resnet_small").nodes
    generator = next(number for number, node in enumerate(nodes) if node.title == "generated kernels")
    users = [node.title for node in nodes if generator in node.inputs]
    assert users == [node.title for node in nodes if node.title == "hyper block"]


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [
        ("resnet_cifar", "conv", 81),
        pytest.param("resnet50", "conv", 483, marks=pytest.mark.slow),
        pytest.param("vgg", "pool", 212, marks=pytest.mark.slow),
        pytest.param("alexnet", "pool", 195, marks=pytest.mark.slow),
    ],
)
def test_the_last_maps_see_what_the_arithmetic_says(name, kind, side):
    """ResNet-20 by hand: 3 pixels, 6 x 2 more, 2 + 5 x 4, 4 + 5 x 8; the others as Araujo et al. 2019 have them."""
    seen = [o.field for o in traced(name).operations if o.kind == kind and o.field is not None]
    assert max(field.height for field in seen) == side


def test_a_detector_ends_in_the_choice_of_boxes():
    nodes = whole("retinanet_small").nodes
    titles = [node.title or node.lines[0][0] for node in nodes]
    assert titles[-3:] == ["RetinaNet classification head", "RetinaNet regression head", "choice of boxes"]
    pyramid = titles.index("feature pyramid network")
    assert [len(nodes[number].inputs) for number in (pyramid, len(nodes) - 3, len(nodes) - 2)] == [2, 1, 1]
    assert set(nodes[-1].inputs) & {len(nodes) - 3, len(nodes) - 2}


@pytest.mark.parametrize(("file", "block"), DRAWINGS.items())
def test_the_drawings_of_the_studies_pages_are_those_of_the_modules(file, block):
    """`python -m convatlas.atlas.study_drawings` writes them."""
    assert (ROOT / "docs" / "studies" / "images" / f"{file}.svg").read_text() == drawing(drawn(block.net), block)


def test_a_drawing_of_a_module_that_is_no_block_is_refused():
    with pytest.raises(UserError, match=r"^fractalnet has no drawing of its module 'head', but of blocks\.0\.$"):
        drawing(drawn("fractalnet"), Block("fractalnet", "head"))
