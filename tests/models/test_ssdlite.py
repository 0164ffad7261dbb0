"""SSDLite on the MobileNets: the papers' costs, default boxes, where the maps are taken, training and evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.detection.ssdlite import (
    LowestReducedBoxes,
    mnasnet_ssdlite,
    mobilenet_v1_ssdlite,
    mobilenet_v2_ssdlite,
    mobilenet_v3_ssdlite,
)

Build = Callable[..., Any]
SIZE = 96
FAMILIES: dict[str, tuple[Build, dict[str, Any]]] = {
    "v1": (mobilenet_v1_ssdlite, {"width": 0.25, "strides": (2, 2, 2, 1, 2), "middle_layers": 0}),
    "v2": (mobilenet_v2_ssdlite, {"width": 0.25, "strides": (1, 2, 2, 1, 1, 2, 1), "repeats": (1,) * 7}),
    "mnasnet": (mnasnet_ssdlite, {"width": 0.25, "strides": (1, 2, 2, 1, 1, 2, 1), "repeats": (1,) * 7}),
    "v3": (mobilenet_v3_ssdlite, {"variant": "small", "width": 0.25, "strides": (1, 2, 2, 2)}),
}
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def small(family: str, **options: Any) -> Any:
    build, own = FAMILIES[family]
    common = {
        "extra_channels": (32,),
        "scales": (0.2, 0.5),
        "bn_momentum": 0.1,
        "image_size": SIZE,
        "num_classes": 4,
        "in_channels": 1,
    }
    return build(**(common | own | options))


@pytest.fixture
def images() -> list[Tensor]:
    return list(torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


# ---- costs ----------------------------------------------------------------------------------------------------------


def parameters_without_norms(net: nn.Module) -> int:
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return count_parameters(net) - sum(count_parameters(norm) for norm in norms)


# Howard et al. 2019, table 6: millions of parameters, which leave batch normalisation out and count 91 classes.
@pytest.mark.parametrize(
    ("build", "options", "printed", "ours"),
    [
        (mobilenet_v3_ssdlite, {}, 4.97, 4.967),
        (mobilenet_v3_ssdlite, {"reduced_tail": True}, 3.22, 3.215),
        (mobilenet_v3_ssdlite, {"variant": "small"}, 2.49, 2.493),
        (mobilenet_v3_ssdlite, {"variant": "small", "reduced_tail": True}, 1.77, 1.765),
        (mobilenet_v2_ssdlite, {"width": 0.5}, 1.54, 1.537),
        (mobilenet_v2_ssdlite, {"width": 0.35}, 0.93, 0.930),
    ],
)
def test_parameters_of_table_6(build: Build, options: dict[str, Any], printed: float, ours: float) -> None:
    millions = parameters_without_norms(on_meta_device(lambda: build(**options))) / 1e6
    assert millions == pytest.approx(ours, abs=0.0005)
    assert millions == pytest.approx(printed, abs=0.0055)


# Sandler et al. 2018, table 6, has SSDLite on MobileNet and MobileNetV2; their count is that of 80 classes.
@pytest.mark.parametrize(("build", "printed"), [(mobilenet_v1_ssdlite, 5.1), (mobilenet_v2_ssdlite, 4.3)])
def test_parameters_of_the_first_ssdlites(build: Build, printed: float) -> None:
    net = on_meta_device(lambda: build(num_classes=81))
    assert round(parameters_without_norms(net) / 1e6, 1) == printed
    assert round(count_parameters(net) / 1e6, 1) == printed


@pytest.mark.parametrize(("width", "printed"), [(1.0, 4.88), (0.5, 1.68), (0.35, 1.02)])
def test_mnasnet_is_within_one_percent_of_table_6(width: float, printed: float) -> None:
    net = on_meta_device(lambda: mnasnet_ssdlite(width=width))
    assert parameters_without_norms(net) / 1e6 == pytest.approx(printed, rel=0.01)


# Table 6: billions of multiply-adds at 320 pixels; ours to three places beside the printed figure.
@pytest.mark.parametrize(
    ("build", "options", "printed", "ours"),
    [
        (mobilenet_v1_ssdlite, {}, 1.3, 1.322),
        (mobilenet_v2_ssdlite, {}, 0.80, 0.804),
        (mobilenet_v2_ssdlite, {"width": 0.5}, 0.27, 0.272),
        (mobilenet_v2_ssdlite, {"width": 0.35}, 0.16, 0.167),
        (mnasnet_ssdlite, {}, 0.84, 0.838),
        (mnasnet_ssdlite, {"width": 0.5}, 0.29, 0.290),
        (mnasnet_ssdlite, {"width": 0.35}, 0.18, 0.177),
        (mobilenet_v3_ssdlite, {}, 0.62, 0.613),
        (mobilenet_v3_ssdlite, {"reduced_tail": True}, 0.51, 0.507),
        (mobilenet_v3_ssdlite, {"variant": "small"}, 0.21, 0.210),
        (mobilenet_v3_ssdlite, {"variant": "small", "reduced_tail": True}, 0.16, 0.162),
    ],
)
def test_multiply_adds_of_table_6(build: Build, options: dict[str, Any], printed: float, ours: float) -> None:
    net = on_meta_device(lambda: build(**options)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.head(list(net.backbone(torch.zeros(1, 3, 320, 320, device="meta")).values()))
    billions = counter.get_total_flops() / 2e9
    assert billions == pytest.approx(ours, abs=0.0005)
    assert billions == pytest.approx(printed, rel=0.045)


def test_on_v3_with_six_boxes_on_every_map_it_is_torchvision_s() -> None:
    theirs: Any = on_meta_device(lambda: ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))
    ours = on_meta_device(lambda: mobilenet_v3_ssdlite(reduced_tail=True, reduce_lowest=False))
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    boxes = [net.anchor_generator for net in (ours, theirs)]
    picture, maps = ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)]), [torch.zeros(1, 1, n, n) for n in (20, 10)]
    assert torch.equal(*(each(picture, maps)[0] for each in boxes))


@pytest.mark.slow
def test_with_torchvision_s_weights_on_v3_it_computes_what_torchvision_computes() -> None:
    torch.manual_seed(0)
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    ours = mobilenet_v3_ssdlite(reduced_tail=True, reduce_lowest=False, num_classes=5).eval()
    for mine, other in ((ours.parameters(), theirs.parameters()), (ours.buffers(), theirs.buffers())):
        for a, b in zip(mine, other, strict=True):
            a.data.copy_(b)
    x = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        maps, expected = (list(net.backbone(x).values()) for net in (ours, theirs))
        torch.testing.assert_close(maps, expected)
        torch.testing.assert_close(ours.head(maps), theirs.head(expected))


# ---- maps and boxes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options", "channels"),
    [
        (mobilenet_v1_ssdlite, {}, [512, 1024, 512, 256, 256, 128]),
        (mobilenet_v2_ssdlite, {}, [576, 1280, 512, 256, 256, 128]),
        (mobilenet_v2_ssdlite, {"width": 0.35}, [192, 448, 179, 89, 89, 44]),
        (mnasnet_ssdlite, {}, [672, 1280, 512, 256, 256, 128]),
        (mobilenet_v3_ssdlite, {}, [672, 960, 512, 256, 256, 128]),
        (mobilenet_v3_ssdlite, {"reduced_tail": True}, [672, 480, 512, 256, 256, 128]),
        (mobilenet_v3_ssdlite, {"variant": "small"}, [288, 576, 512, 256, 256, 128]),
    ],
)
def test_six_maps_from_stride_16_on(build: Build, options: dict[str, Any], channels: list[int]) -> None:
    backbone = on_meta_device(lambda: build(**options)).backbone.eval()
    maps = list(backbone(torch.zeros(1, 3, 320, 320, device="meta")).values())
    assert [m.shape[1] for m in maps] == channels == backbone.channels
    assert [m.shape[-1] for m in maps] == [20, 10, 5, 3, 2, 1]


@EVERY_FAMILY
def test_strides_move_c4_to_stride_8(family: str) -> None:
    maps = on_meta_device(lambda: small(family)).backbone.eval()(torch.zeros(1, 1, SIZE, SIZE, device="meta"))
    assert [m.shape[-1] for m in maps.values()] == [12, 6, 3]


def test_c4_is_the_expansion_behind_its_norm_and_activation() -> None:
    torch.manual_seed(0)
    body = small("v2").backbone.body.eval()
    x = torch.randn(1, 1, SIZE, SIZE)
    block = body.blocks.get_submodule("5").get_submodule("0")
    seen: list[Tensor] = []
    block.conv_pw.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        c4 = body(x)["C4"]
        norm = block.bn1
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shaped = [v.reshape(1, -1, 1, 1) for v in (norm.running_mean, scale, norm.bias)]
        torch.testing.assert_close(c4, ((seen[0] - shaped[0]) * shaped[1] + shaped[2]).clamp(0, 6))


def test_the_first_map_has_three_boxes_and_the_others_six() -> None:
    """Squares of 0.1 of the image on the first map, with both boxes of ratio 2 and area 0.2^2."""
    boxes = LowestReducedBoxes([[2, 3]] * 6, 0.2, 0.95)
    full = DefaultBoxGenerator([[2, 3]] * 6, 0.2, 0.95)
    assert boxes.num_anchors_per_location() == [3, 6, 6, 6, 6, 6]
    root = math.sqrt(2)
    first = [[0.1, 0.1], [0.2 * root, 0.2 / root], [0.2 / root, 0.2 * root]]
    torch.testing.assert_close(boxes._wh_pairs[0], torch.tensor(first))
    for ours, theirs in zip(boxes._wh_pairs[1:], full._wh_pairs[1:], strict=True):
        assert torch.equal(ours, theirs)


def test_default_boxes_lie_on_the_middles_of_the_places() -> None:
    boxes = LowestReducedBoxes([[2, 3]] * 2, 0.2, 0.4)
    picture = ImageList(torch.zeros(1, 1, 64, 64), [(64, 64)])
    (placed,) = boxes(picture, [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)])
    assert len(placed) == 3 * 16 + 6 * 4
    middles = (placed[:, :2] + placed[:, 2:]) / 2
    torch.testing.assert_close(middles[:3], torch.full((3, 2), 8.0))
    torch.testing.assert_close(middles[-6:], torch.full((6, 2), 48.0))


def test_the_momentum_is_that_of_every_norm() -> None:
    net = on_meta_device(lambda: mobilenet_v2_ssdlite(bn_momentum=0.07))
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.07}


# ---- contract -------------------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_training_returns_losses_whose_gradients_reach_every_parameter(family: str, images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = small(family).train()
    losses = net(images, [target([[4, 4, 30, 40], [30, 30, 60, 62]], [1, 3]), target([[10, 20, 30, 50]], [2])])
    assert set(losses) == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@EVERY_FAMILY
def test_images_without_objects_give_finite_losses(family: str, images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = small(family).train()
    losses = net(images, [target([], []), target([[4, 4, 30, 40]], [1])])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@EVERY_FAMILY
def test_evaluation_returns_boxes_inside_the_image_the_same_twice(family: str, images: list[Tensor]) -> None:
    torch.manual_seed(0)
    net = small(family).eval()
    with torch.no_grad():
        found, again = net(images), net(images)
    for each, other in zip(found, again, strict=True):
        assert 0 < len(each["boxes"]) <= 300
        assert each["boxes"].min() >= 0
        assert each["boxes"].max() <= SIZE
        assert set(each["labels"].tolist()) <= {1, 2, 3}
        assert all(torch.equal(each[name], other[name]) for name in each)


@EVERY_FAMILY
def test_a_copy_and_a_stored_net_find_the_same(family: str, images: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = small(family).train()
    net(images, [target([[4, 4, 30, 40]], [1]), target([[10, 20, 30, 50]], [2])])  # moves the running statistics
    copied = copy.deepcopy(net).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    stored = small(family).eval()
    stored.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.no_grad():
        expected = net.eval()(images)
        for other in (copied, stored):
            for each, found in zip(expected, other(images), strict=True):
                assert all(torch.equal(each[name], found[name]) for name in each)


@pytest.mark.parametrize(("options", "words"), [
    ({"image_size": 16}, r"^model\.image_size=16 leaves the first map without a pixel"),
    ({"extra_channels": ()}, r"^model\.extra_channels=\[\] must be one number or more"),
    ({"scales": (0.5, 0.2)}, r"^model\.scales=\[0\.5, 0\.2\] must be two rising shares"),
    ({"scales": (0.2,)}, r"^model\.scales=\[0\.2\] must be two rising shares"),
    ({"bn_momentum": 0.0}, r"^model\.bn_momentum=0\.0 must be above 0"),
    ({"num_classes": 1}, r"^model\.num_classes=1 must be at least 2"),
    ({"variant": "medium"}, r"^model\.variant=medium is not known; choose one of large, small\.$"),
    ({"strides": (2, 2, 2)}, r"^model\.strides=\[2, 2, 2\] must be 4 numbers"),
    ({"width": 0.0}, r"^model\.width=0\.0 must be above 0"),
])  # fmt: skip
def test_options_that_make_no_ssdlite(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        on_meta_device(lambda: small("v3", **options))


# ---- the focal loss -------------------------------------------------------------------------------------------------


def test_the_focal_loss_is_the_authors_on_all_boxes(images: list[Tensor]) -> None:
    net = small("v3", loss="focal").train()
    heads = list(net.head.classification_head.module_list)
    assert all(head[1].bias.detach().sigmoid().tolist() == pytest.approx([0.01] * len(head[1].bias)) for head in heads)
    features = list(net.backbone(torch.stack(images)).values())
    outputs = net.head(features)
    outputs["cls_logits"] = torch.randn(outputs["cls_logits"].shape, generator=torch.Generator().manual_seed(0))
    anchors = net.anchor_generator(ImageList(torch.stack(images), [(SIZE, SIZE)] * 2), features)
    targets = [target([[8, 8, 40, 40], [50, 50, 90, 90]], [1, 3]), target([], [])]
    matches = [torch.full((len(anchors[0]),), -1) for _ in targets]
    matches[0][[5, 9, 11]] = torch.tensor([0, 1, 1])
    outputs = {name: values.detach() for name, values in outputs.items()}
    losses = net.compute_loss(targets, outputs, anchors, matches)
    expected = 0.0
    for image, match in enumerate(matches):
        for box, number in enumerate(match.tolist()):
            for label in range(4):
                p = float(outputs["cls_logits"][image, box, label].sigmoid())
                right = number >= 0 and label == int(targets[image]["labels"][number])
                expected -= 0.75 * (1 - p) ** 2 * math.log(p) if right else 0.25 * p**2 * math.log(1 - p)
    assert float(losses["classification"]) == pytest.approx(expected / 3, rel=1e-4)
    softmax = small("v3").compute_loss(targets, outputs, anchors, matches)
    assert float(losses["bbox_regression"]) == pytest.approx(float(softmax["bbox_regression"]) / 4, rel=1e-6)


def test_the_focal_loss_finds_each_class_by_itself_and_never_the_background(images: list[Tensor]) -> None:
    net = small("v3", loss="focal").eval()
    features = list(net.backbone(torch.stack(images[:1])).values())
    outputs = net.head(features)
    outputs["bbox_regression"] = torch.zeros_like(outputs["bbox_regression"])  # the default boxes themselves
    logits = torch.full_like(outputs["cls_logits"], -30.0)
    logits[:, :, 0] = 30.0
    logits[0, 7, 1], logits[0, 7, 3] = 2.0, 1.0
    outputs["cls_logits"] = logits
    anchors = net.anchor_generator(ImageList(images[0][None], [(SIZE, SIZE)]), features)
    (found,) = net.postprocess_detections(outputs, anchors, [(SIZE, SIZE)])
    assert found["labels"].tolist() == [1, 3]  # two classes of one box
    assert found["scores"].tolist() == pytest.approx(torch.tensor([2.0, 1.0]).sigmoid().tolist())
    torch.testing.assert_close(found["boxes"], anchors[0][[7, 7]].clamp(0, SIZE))
    logits[..., 1:] = torch.randn(logits[..., 1:].shape, generator=torch.Generator().manual_seed(0))
    (found,) = net.postprocess_detections(outputs, anchors, [(SIZE, SIZE)])
    assert len(found["scores"]) <= 100
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


def test_a_loss_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.loss=hinge is not known; choose one of softmax, focal\.$"):
        small("v3", loss="hinge")
