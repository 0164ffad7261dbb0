"""YOLO on CSP backbones: the authors' counts, necks, the assignment by hand, boxes and losses, the contract."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.detection import MeanAveragePrecision

from convatlas.core.composing import hydra_ready
from convatlas.data.sources.digit_scenes import load
from convatlas.models.build import build_model
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.detection.yolo import (
    MAX_LOGARITHM,
    Priors,
    Yolo,
    assign,
    best_anchors,
    decode,
    divergence,
    encode,
    make_priors,
    yolo,
)
from convatlas.models.layers.path_aggregation import PathAggregation
from convatlas.models.layers.scale_fusion import Maxout, exact_fusion, global_fusion, resize
from convatlas.models.layers.spatial_pyramid_block import SpatialPyramidBlock
from helpers import ROOT

ANCHORS = (((8.0, 8.0), (10.0, 20.0)), ((16.0, 16.0), (20.0, 40.0)), ((40.0, 40.0), (60.0, 30.0)))
SIZES, STRIDES = [(16, 16), (8, 8), (4, 4)], (4, 8, 16)
BODY = {"blocks": (1, 1, 1), "channels": (8, 8, 16), "stem": "large", "stem_channels": 8}


def small(**options: Any) -> Yolo:
    arguments: dict[str, Any] = {
        "backbone": "csp_resnet50",
        "backbone_options": BODY,
        "neck_channels": (8, 8, 8),
        "neck_convolutions": 1,
        "anchors": ANCHORS,
        "image_size": 64,
        "num_classes": 4,
        "in_channels": 1,
    }
    return yolo(**(arguments | options))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def priors() -> Priors:
    return make_priors(SIZES, STRIDES, torch.tensor(ANCHORS))


# ---- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "parameters", "flops"), [
    ("csp_resnext50", 56_942_525, 47_063_271_424),
    ("csp_resnet50", 58_328_765, 49_278_388_224),
    ("csp_darknet53", 64_363_101, 60_104_771_584),
])  # fmt: skip
def test_whole_detectors_at_416_are_those_of_the_authors_files(backbone: str, parameters: int, flops: int) -> None:
    net = on_meta_device(lambda: yolo(backbone=backbone)).eval()
    with FlopCounterMode(display=False) as counter:
        outputs, sizes = net._outputs(torch.zeros(1, 3, 416, 416, device="meta"))
    assert (count_parameters(net), counter.get_total_flops()) == (parameters, flops)
    assert sizes == [(52, 52), (26, 26), (13, 13)]
    assert outputs.shape == (1, 3 * (52**2 + 26**2 + 13**2), 85)


# ---- necks ----------------------------------------------------------------------------------------------------------


def test_spp_pools_13_9_and_5_and_keeps_the_map() -> None:
    x = torch.randn(2, 3, 20, 20)
    out = SpatialPyramidBlock()(x)
    padded = [F.pad(x, [side // 2] * 4, value=-math.inf).unfold(2, side, 1).unfold(3, side, 1) for side in (13, 9, 5)]
    assert torch.equal(out, torch.cat([*(each.amax((4, 5)) for each in padded), x], 1))


def pyramid_of(channels: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, 16 // 2**level, 16 // 2**level, generator=generator) for level, c in enumerate(channels)]


def influence(neck: nn.Module, maps: list[Tensor]) -> list[list[bool]]:
    """Say for each output whether it depends on each input."""
    leaves = [each.clone().requires_grad_() for each in maps]
    neck.eval()
    table = []
    for out in neck(leaves):
        gradients = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True, allow_unused=True)
        table.append([g is not None and bool(g.abs().max() > 0) for g in gradients])
    return table


def test_exact_fusion_joins_the_neighbouring_scales_alone() -> None:
    torch.manual_seed(0)
    table = influence(exact_fusion((3, 4, 5, 6), (4, 4, 4, 4)), pyramid_of((3, 4, 5, 6)))
    assert table == [[abs(here - there) <= 1 for there in range(4)] for here in range(4)]


def test_global_fusion_and_pan_join_all_scales() -> None:
    torch.manual_seed(0)
    maps = pyramid_of((3, 4, 5))
    assert influence(global_fusion((3, 4, 5), (4, 4, 4)), maps) == [[True] * 3] * 3
    assert influence(PathAggregation((3, 4, 5), (4, 4, 8)), maps) == [[True] * 3] * 3


def test_a_feature_pyramid_takes_from_coarser_scales_alone() -> None:
    torch.manual_seed(0)
    neck = small(neck="fpn").neck
    table = influence(neck, pyramid_of((8, 8, 16)))
    assert table == [[there >= here for there in range(3)] for here in range(3)]


@pytest.mark.parametrize("neck", ["pan", "fpn", "global", "exact"])
def test_a_neck_keeps_sizes_and_tells_its_channels(neck: str) -> None:
    net = small(neck=neck)
    maps = net.backbone.forward_pyramid(torch.rand(2, 1, 64, 64))
    out = net.neck(maps)
    assert [tuple(each.shape) for each in out] == [(2, 8, *size) for size in SIZES]
    assert net.neck.out_channels == (8, 8, 8)


def test_maxout_is_the_largest_of_its_linear_pieces() -> None:
    torch.manual_seed(0)
    layer = Maxout(5, 3, pieces=2).eval()
    x = torch.randn(2, 5, 4, 4)
    pieces = layer.pieces(x)
    assert layer.pieces[0].out_channels == 6
    assert torch.equal(layer(x), torch.maximum(pieces[:, :3], pieces[:, 3:]))


def test_maps_are_resized_by_maxima_and_nearest_neighbours() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(x, 1).tolist() == [[[[5, 7], [13, 15]]]]
    assert resize(x, 2).tolist() == [[[[15]]]]
    assert torch.equal(resize(resize(x, -1)[:, :, ::2, ::2], 0), x)


# ---- places, boxes --------------------------------------------------------------------------------------------------


def test_the_most_similar_anchor_is_the_one_of_most_concentric_overlap() -> None:
    """9 x 9: IoU 64/81 with 8 x 8, 81/256 with 16 x 16; 12 x 30: 200/360 with 10 x 20, 360/800 with 20 x 40."""
    sizes = torch.tensor([[9.0, 9.0], [12.0, 30.0], [60.0, 30.0]])
    assert best_anchors(sizes, torch.tensor(ANCHORS).flatten(0, 1)).tolist() == [0, 1, 5]


def test_an_object_belongs_to_one_anchor_in_the_cell_of_its_centre() -> None:
    """A box of 18 x 18 around (37, 21): anchor 16 x 16, the first of level 1 (stride 8): column 4, row 2."""
    boxes = torch.tensor([[28.0, 12.0, 46.0, 30.0]])
    has_place, places = assign(boxes, torch.tensor(ANCHORS), SIZES, STRIDES)
    first = 16 * 16 * 2
    assert (has_place.tolist(), places.tolist()) == ([True], [first + (2 * 8 + 4) * 2 + 0])
    here = Priors(*(each[places] for each in priors()))
    assert (here.corners.tolist(), here.strides.tolist(), here.anchors.tolist()) == ([[32, 16]], [[8]], [[16, 16]])


def test_every_place_is_numbered_as_the_priors_are() -> None:
    """A box of each anchor's own shape in the middle of each cell finds just its own place."""
    here = priors()
    centres = here.corners + here.strides / 2
    boxes = torch.cat([centres - here.anchors / 2, centres + here.anchors / 2], 1)
    has_place, places = assign(boxes, torch.tensor(ANCHORS), SIZES, STRIDES)
    assert has_place.all()
    assert torch.equal(places, torch.arange(len(boxes)))


def test_of_two_objects_in_one_place_the_later_one_has_it() -> None:
    boxes = torch.tensor([[28.0, 12.0, 46.0, 30.0], [2.0, 2.0, 10.0, 10.0], [29.0, 13.0, 46.0, 30.0]])
    has_place, _ = assign(boxes, torch.tensor(ANCHORS), SIZES, STRIDES)
    assert has_place.tolist() == [False, True, True]


def test_a_centre_on_the_border_belongs_to_the_last_cell() -> None:
    boxes = torch.tensor([[60.0, 60.0, 68.0, 68.0]])
    _, places = assign(boxes, torch.tensor(ANCHORS), SIZES, STRIDES)
    assert priors().corners[places].tolist() == [[60, 60]]


def test_decode_is_the_inverse_of_encode() -> None:
    generator = torch.Generator().manual_seed(0)
    here = priors()
    centres = here.corners + here.strides * (0.05 + 0.9 * torch.rand(len(here.corners), 2, generator=generator))
    sizes = here.anchors * (0.5 + torch.rand(len(here.corners), 2, generator=generator))
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    wanted = encode(boxes, here)
    outputs = torch.cat([wanted[:, :2].logit(), wanted[:, 2:]], 1)
    torch.testing.assert_close(decode(outputs, here), boxes, atol=1e-3, rtol=1e-4)


def test_zero_outputs_are_the_anchor_in_the_middle_of_its_cell_and_sizes_are_bounded() -> None:
    here = Priors(torch.tensor([[32.0, 16.0]]), torch.tensor([[8.0]]), torch.tensor([[16.0, 10.0]]))
    assert decode(torch.zeros(1, 4), here).tolist() == [[28, 15, 44, 25]]
    huge = decode(torch.tensor([[0.0, 0.0, 500.0, 0.0]]), here)[0]
    assert huge[2] - huge[0] == pytest.approx(16 * math.exp(MAX_LOGARITHM), rel=1e-5)


# ---- losses ---------------------------------------------------------------------------------------------------------


def outputs_that_say(net: Yolo, targets: list[dict[str, Tensor]]) -> Tensor:
    """Return outputs of a net that knows everything and is sure of it."""
    here = priors()
    outputs = torch.full((len(targets), len(here.corners), 5 + net.classes), -20.0)
    outputs[..., :4] = 0
    for number, each in enumerate(targets):
        has_place, places = assign(each["boxes"], net.anchors, SIZES, STRIDES)
        places = places[has_place]
        wanted = encode(each["boxes"][has_place], Priors(*(p[places] for p in here)))
        outputs[number, places, :4] = torch.cat([wanted[:, :2].logit(eps=1e-6), wanted[:, 2:]], 1)
        outputs[number, places, 4] = 20
        outputs[number, places, 4 + each["labels"][has_place]] = 20
    return outputs


TARGETS = [target([[4, 4, 30, 40], [30, 30, 60, 62]], [1, 3]), target([[10, 20, 30, 50]], [2])]


def losses_of(net: Yolo, outputs: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return net._losses(outputs, priors(), net._find(outputs, priors(), SIZES, targets))


@pytest.mark.parametrize("box_loss", ["squared", "giou", "ciou"])
def test_a_perfect_prediction_costs_nothing_and_is_detected_as_it_is(box_loss: str) -> None:
    net = small(box_loss=box_loss)
    outputs = outputs_that_say(net, TARGETS)
    assert all(0 <= float(loss) < 1e-4 for loss in losses_of(net, outputs, TARGETS).values())
    for found, truth in zip(net._detections(outputs, priors()), TARGETS, strict=True):
        order = found["labels"].argsort()
        assert found["labels"][order].tolist() == truth["labels"].tolist()
        torch.testing.assert_close(found["boxes"][order], truth["boxes"], atol=1e-2, rtol=0)
        assert found["scores"].min() > 0.999


def test_each_loss_sees_its_own_mistake() -> None:
    net = small()
    right = outputs_that_say(net, TARGETS)
    place = assign(TARGETS[1]["boxes"], net.anchors, SIZES, STRIDES)[1]
    for column, name in ((0, "box"), (3, "box"), (4, "objectness"), (6, "classification")):
        wrong = right.clone()
        wrong[1, place, column] -= 3 if column < 4 else 23
        losses = losses_of(net, wrong, TARGETS)
        assert {key for key, value in losses.items() if value > 1e-2} == {name}


def test_the_box_loss_is_yolov3_s() -> None:
    """(2 - w h) times cross-entropy of the centre and half the squared error of the size, by hand for one box."""
    net = small()
    box = target([[28, 12, 46, 30]], [1])  # around (37, 21) in the cell from (32, 16) with stride 8; anchor 16 x 16
    outputs = torch.full((1, len(priors().corners), 8), -20.0)
    outputs[..., :4] = 0
    centre = sum(math.log(2) + q * math.log(q) + (1 - q) * math.log(1 - q) for q in (5 / 8, 5 / 8))
    size = 2 * math.log(18 / 16) ** 2 / 2
    expected = (2 - 18 * 18 / 64**2) * (centre + size)
    assert float(losses_of(net, outputs, [box])["box"]) == pytest.approx(expected, rel=1e-4)


def test_divergence_has_the_gradient_of_cross_entropy() -> None:
    logits = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    wanted = torch.tensor([0.3, 0.0, 1.0])
    divergence(logits, wanted).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - wanted)
    assert divergence(wanted[:1].logit(), wanted[:1]).item() == pytest.approx(0, abs=1e-6)


def test_a_neighbour_that_sees_the_object_well_is_not_told_that_it_is_empty() -> None:
    net = small()
    one = [target([[28, 12, 46, 30]], [1])]
    outputs = outputs_that_say(net, one)
    place = int(assign(one[0]["boxes"], net.anchors, SIZES, STRIDES)[1])
    for side, ignored in ((18.0, True), (6.0, False)):  # the right-hand cell, at its left border: large enough, or not
        neighbour = outputs.clone()
        cell = priors().corners[place + 2]
        assert cell.tolist() == [40, 16]
        size = torch.tensor([side, side])
        neighbour[0, place + 2, :4] = torch.cat([torch.tensor([-20.0, math.log(5 / 3)]), (size / 16).log()])
        neighbour[0, place + 2, 4] = 20
        loss = float(losses_of(net, neighbour, one)["objectness"])
        assert (loss < 1e-4) == ignored
        if not ignored:
            assert loss == pytest.approx(20, rel=1e-3)


def test_losses_are_means_over_the_images() -> None:
    net = small()
    outputs = torch.randn(1, len(priors().corners), 8, generator=torch.Generator().manual_seed(0))
    once = losses_of(net, outputs, TARGETS[:1])
    twice = losses_of(net, outputs.repeat(2, 1, 1), TARGETS[:1] * 2)
    torch.testing.assert_close(once, twice)


# ---- contract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neck", ["pan", "fpn", "global", "exact"])
def test_gradients_reach_every_parameter(neck: str, images: Tensor) -> None:
    torch.manual_seed(0)
    net = small(neck=neck).train()
    losses = net(list(images), [target([[4, 4, 12, 12], [20, 20, 36, 36], [8, 8, 48, 48]], [1, 2, 3]), TARGETS[1]])
    assert list(losses) == ["box", "objectness", "classification"]
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("box_loss", ["squared", "giou", "ciou"])
@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_objects_give_finite_losses(box_loss: str, empty: tuple[int, ...], images: Tensor) -> None:
    torch.manual_seed(0)
    net = small(box_loss=box_loss).train()
    losses = net(list(images), [target([], []) if number in empty else TARGETS[1] for number in range(2)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    if len(empty) == 2:
        assert losses["box"] == losses["classification"] == 0


def test_evaluation_returns_sorted_detections_inside_the_image(images: Tensor) -> None:
    torch.manual_seed(0)
    net = small(score_threshold=1e-4, detections_per_image=20).eval()
    with torch.no_grad():
        found, again = net(list(images)), net(list(images))
    assert len(found) == 2
    for each, same in zip(found, again, strict=True):
        assert len(each["scores"]) == 20
        assert each["boxes"].min() >= 0
        assert each["boxes"].max() <= 64
        assert (each["scores"].diff() <= 0).all()
        assert set(each["labels"].tolist()) <= {1, 2, 3}
        assert torch.equal(each["boxes"], same["boxes"])


def test_an_image_of_which_nothing_is_sure_gives_empty_detections(images: Tensor) -> None:
    found = small(score_threshold=0.999).eval()(list(images))
    assert [tuple(each["boxes"].shape) for each in found] == [(0, 4), (0, 4)]


def test_one_class_suppresses_itself_alone() -> None:
    net = small()
    outputs = outputs_that_say(net, [target([[28, 12, 46, 30]], [1])])
    place = int(assign(torch.tensor([[28.0, 12.0, 46.0, 30.0]]), net.anchors, SIZES, STRIDES)[1])
    outputs[0, place, 7] = 5  # the same place sees class 3 as well
    outputs[0, place + 1] = outputs[0, place]  # the other anchor sees the same box
    outputs[0, place + 1, 2:4] += (priors().anchors[place] / priors().anchors[place + 1]).log()
    assert net._detections(outputs, priors())[0]["labels"].tolist() == [1, 3]


def test_image_sizes_that_the_strides_do_not_divide_are_padded() -> None:
    net = small(image_size=56).eval()
    assert len(net([torch.rand(1, 56, 56)])[0]["boxes"].shape) == 2
    assert net._outputs(net.transform([torch.rand(1, 56, 56)])[0].tensors)[1] == SIZES


def test_places_say_at_first_that_they_are_empty() -> None:
    torch.manual_seed(0)
    outputs, _ = small().eval()._outputs(torch.zeros(1, 1, 64, 64))
    assert outputs[..., 4].sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    ({"backbone": "resnet"}, r"model\.backbone=resnet is not known; .*csp_resnet50"),
    ({"neck": "bifpn"}, r"model\.neck=bifpn .*pan, fpn, global, exact"),
    ({"box_loss": "l1"}, r"model\.box_loss=l1 .*squared, giou, ciou"),
    ({"neck_convolutions": 4}, r"model\.neck_convolutions=4 must be odd"),
    ({"neck_channels": (8, 8)}, r"model\.neck_channels=\[8, 8\] names 2 levels and model\.anchors 3"),
    ({"neck": "fpn", "neck_channels": (8, 8, 16)}, r"model\.neck_channels=.* must be equal for model\.neck=fpn"),
    ({"anchors": (((8, 8),), ((8, 8),), ((8, 8), (9, 9)))}, r"model\.anchors=.* as many at every level"),
    ({"anchors": (((8, 8),), ((8, 8),), ((8, 0),))}, r"model\.anchors=.* positive"),
    ({"backbone_options": {"width": 3}}, r"model\.backbone_options=.*width"),
    ({"backbone_options": {"blocks": (1, 1), "channels": (8, 8), "stem_channels": 8}}, r"model\.anchors has 3 levels"),
    ({"num_classes": 1}, r"model\.num_classes=1 must be at least 2"),
    ({"nms_threshold": 0}, r"model\.nms_threshold=0 is an overlap"),
    ({"ignore_overlap": 1.5}, r"model\.ignore_overlap=1\.5 is an overlap"),
])  # fmt: skip
def test_options_that_make_no_detector(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_boxes_without_area_and_training_without_targets_are_refused(images: Tensor) -> None:
    net = small().train()
    with pytest.raises(ValueError, match=r"image 1 of a batch has a box without area"):
        net(list(images), [TARGETS[0], target([[3, 4, 3, 9]], [1])])
    with pytest.raises(ValueError, match="trains with targets"):
        net(list(images))


# ---- it learns ------------------------------------------------------------------------------------------------------


def configured(name: str, **changes: Any) -> nn.Module:
    with hydra_ready():
        config: Any = OmegaConf.to_container(compose("profile", [f"model={name}"]).model, resolve=True)
    return build_model(config | changes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), [
    ("csp_pan_yolo_small", {}),
    ("csp_efm_yolo_small", {}),
    ("csp_efm_yolo_small", {"neck": "global"}),
    ("csp_efm_yolo_small", {"neck": "fpn"}),
])  # fmt: skip
def test_a_small_detector_learns_eight_images_by_heart(name: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    scenes = load(ROOT, scenes=25)
    assert scenes.boxes is not None
    assert scenes.box_labels is not None
    images = list(torch.from_numpy(scenes.images[:8]).float() / 255)
    targets = [
        {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(np.asarray(labels))}
        for boxes, labels in zip(scenes.boxes[:8], scenes.box_labels[:8], strict=True)
    ]
    net = configured(name, **changes).train()
    steps = 150
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(net(images, targets).values()).backward()
        optimizer.step()
        schedule.step()
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    with torch.no_grad():
        metric.update(net.eval()(images), targets)
    assert metric.compute()["map_50"] >= 0.95


def test_the_loss_of_a_place_is_computed_under_autocast_on_a_gpu():
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode():
            values = torch.zeros(2, 2, device="cuda")
            assert divergence(values, values).dtype == torch.float32
    finally:
        torch.set_autocast_enabled("cuda", before)
