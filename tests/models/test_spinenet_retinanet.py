"""RetinaNet on SpineNet and on ResNet-50-FPN: published sizes, the head, the losses, the anchors, the contract."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.detection import MeanAveragePrecision

from convatlas.models.classification.spinenet import ResidualBlock
from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.detection.spinenet_retinanet import ResNetPyramid, resnet50_fpn_retinanet, spinenet_retinanet
from convatlas.models.layers.retinanet_head import CentredAnchors, LevelNormHead

Build = Callable[..., nn.Module]
SMALL = {"width": 0.0625, "image_size": 96, "num_classes": 4, "in_channels": 1}


def small_spinenet(**options) -> nn.Module:
    torch.manual_seed(0)
    return spinenet_retinanet(**(SMALL | {"anchor_scale": 2.0} | options))


def small_resnet(**options) -> nn.Module:
    torch.manual_seed(0)
    return resnet50_fpn_retinanet(**(SMALL | {"anchor_scale": 2.0} | options))


BUILDERS = pytest.mark.parametrize("build", [small_spinenet, small_resnet])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "pixels", "parameters", "macs"),
    [
        (lambda: spinenet_retinanet(variant="49S", endpoint_width=128), 640, 11_255_565, 30_690_153_975),
        (lambda: spinenet_retinanet(variant="49S"), 640, 11_934_221, 33_656_861_175),
        (lambda: spinenet_retinanet(variant="49"), 640, 28_522_638, 85_104_780_800),
        (lambda: spinenet_retinanet(variant="96"), 1024, 42_954_126, 264_571_813_888),
        (lambda: spinenet_retinanet(variant="143"), 1280, 66_938_766, 522_630_502_400),
        (lambda: spinenet_retinanet(variant="190"), 1280, 163_595_870, 1_880_245_344_000),
        (resnet50_fpn_retinanet, 640, 34_070_414, 96_703_424_000),
    ],
    ids=["49S-released", "49S", "49", "96", "143", "190", "resnet50"],
)
def test_costs_with_90_classes(build, pixels, parameters, macs):
    net = on_meta_device(build).eval()
    with FlopCounterMode(display=False) as counter:
        net.head(list(net.backbone(torch.zeros(1, 3, pixels, pixels, device="meta")).values()))
    assert (count_parameters(net), counter.get_total_flops()) == (parameters, 2 * macs)


def test_the_resnet_has_the_body_of_resnet50_and_p6_made_of_p5():
    net = on_meta_device(ResNetPyramid)
    assert count_parameters(net.stem) + count_parameters(net.stages) == 23_508_032  # torchvision's, without its fc
    assert net.pyramid.extra_blocks.use_P5
    maps = net.eval()(torch.zeros(1, 3, 640, 640, device="meta"))
    assert [(name, *each.shape[1:]) for name, each in maps.items()] == [
        (f"P{level}", 256, side, side) for level, side in zip(range(3, 8), (80, 40, 20, 10, 5), strict=True)
    ]


def test_the_pyramid_s_levels_end_with_a_normalisation_and_no_activation():
    torch.manual_seed(0)
    net = ResNetPyramid(width=0.0625, in_channels=1).train()
    p3 = net(torch.rand(4, 1, 128, 128))["P3"]
    torch.testing.assert_close(p3.mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    assert (p3 < 0).any()


# ---- head -----------------------------------------------------------------------------------------------------------


def small_head() -> LevelNormHead:
    torch.manual_seed(0)
    return LevelNormHead(6, width=8, convs=2, levels=3, anchors=9, object_classes=4, activation=nn.ReLU)


def test_levels_share_convolutions_and_have_their_own_normalisation():
    head = small_head()
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(convolutions), len(norms)) == (2 * (2 + 1), 2 * 2 * 3)
    maps = [torch.randn(2, 6, side, side) for side in (4, 2, 1)]
    head.train()(maps)
    assert [[norm.num_batches_tracked.item() for norm in level] for level in head.box_tower.norms] == [[1, 1]] * 3


def test_a_level_s_normalisation_changes_that_level_alone():
    head = small_head().eval()
    maps = [torch.randn(2, 6, side, side) for side in (4, 2, 1)]
    before = head(maps)["cls_logits"]
    nn.init.constant_(head.class_tower.norms[1][0].bias, 3.0)
    changed = (head(maps)["cls_logits"] != before).flatten(2).any(2).any(0)
    expected = torch.zeros(9 * (16 + 4 + 1), dtype=torch.bool)
    expected[9 * 16 : 9 * 20] = True
    assert torch.equal(changed, expected)


def test_every_class_starts_with_a_probability_of_a_hundredth_and_every_box_at_its_anchor():
    head = on_meta_device(small_head)
    assert head.class_logits.weight.shape == (9 * 4, 8, 3, 3)
    real = small_head()
    torch.testing.assert_close(real.class_logits.bias, torch.full((36,), -math.log(99)))
    found = real.eval()([torch.rand(1, 6, 4, 4)] * 3)
    torch.testing.assert_close(found["cls_logits"].sigmoid(), torch.full((1, 3 * 144, 4), 0.01), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["bbox_regression"], torch.zeros(1, 3 * 144, 4), atol=1e-3, rtol=0)


def test_outputs_are_in_the_order_of_the_anchors():
    """Logits of anchor a of a pixel are the channels from a * classes on."""
    head = small_head().eval()
    x = torch.randn(1, 6, 3, 5)
    logits = head.class_logits(head.class_tower(x, 0))
    found = head([x, x, x])["cls_logits"]
    row, column, anchor = 2, 3, 7
    assert torch.equal(found[0, (row * 5 + column) * 9 + anchor], logits[0, anchor * 4 : anchor * 4 + 4, row, column])


# ---- anchors --------------------------------------------------------------------------------------------------------


def test_anchors_are_centred_in_their_cells_and_have_the_paper_s_sizes():
    from torchvision.models.detection.image_list import ImageList

    generator = CentredAnchors((8, 16), 3.0)
    images = ImageList(torch.zeros(1, 1, 64, 96), [(64, 96)])
    (anchors,) = generator(images, [torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)])
    assert len(anchors) == 9 * (8 * 12 + 4 * 6)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[:9].tolist() == [[4, 4]] * 9
    assert centres[9:18].tolist() == [[12, 4]] * 9  # the next cell is to the right
    assert centres[9 * 96 : 9 * 96 + 9].tolist() == [[8, 8]] * 9
    sizes = anchors[:, 2:] - anchors[:, :2]
    squares = [side for side, height in sizes[:9].tolist() if side == height]
    assert squares == [24, 30, 38]  # 3 * 8 = 24, times 2^(1/3) and 2^(2/3), to whole and even pixels
    torch.testing.assert_close(sizes[:9].prod(1).sqrt(), torch.tensor([24, 30.2, 38.1]).repeat(3), rtol=0.03, atol=0)


# ---- losses ---------------------------------------------------------------------------------------------------------


def loss_inputs() -> tuple[dict[str, Tensor], Tensor, list[dict[str, Tensor]]]:
    anchors = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 10], [40, 40, 60, 60], [10, 0, 30, 20]])
    torch.manual_seed(1)
    outputs = {"cls_logits": torch.randn(2, 4, 3), "bbox_regression": torch.randn(2, 4, 4) * 0.2}
    return outputs, anchors, [target([[0, 0, 20, 18], [41, 40, 60, 70]], [2, 3]), target([], [])]


def test_the_losses_are_the_paper_s():
    """Anchors 0 and 1 (IoU 0.9, 0.56) are of the first object, 2 (0.6) of the second, 3 (0.31) is background."""
    net = small_spinenet()
    outputs, anchors, targets = loss_inputs()
    found = net.compute_loss(targets, outputs, [anchors, anchors])

    wanted = torch.zeros(2, 4, 3)
    for anchor, label in ((0, 2), (1, 2), (2, 3)):
        wanted[0, anchor, label - 1] = 1
    p = outputs["cls_logits"].sigmoid()
    p_true, alpha = torch.where(wanted > 0, p, 1 - p), torch.where(wanted > 0, 0.25, 0.75)
    focal = (-alpha * (1 - p_true) ** 1.5 * p_true.log()).sum()
    torch.testing.assert_close(found["classification"], focal / (3 + 1))

    total = 0.0
    for anchor, number in ((0, 0), (1, 0), (2, 1)):
        ax1, ay1, ax2, ay2 = anchors[anchor].tolist()
        x1, y1, x2, y2 = targets[0]["boxes"][number].tolist()
        width, height = ax2 - ax1, ay2 - ay1
        offsets = [
            ((x1 + x2) - (ax1 + ax2)) / 2 / width,
            ((y1 + y2) - (ay1 + ay2)) / 2 / height,
            math.log((x2 - x1) / width),
            math.log((y2 - y1) / height),
        ]
        for guess, offset in zip(outputs["bbox_regression"][0, anchor].tolist(), offsets, strict=True):
            error = abs(guess - offset)
            total += 0.5 * error**2 if error < 0.1 else 0.1 * (error - 0.05)
    assert found["bbox_regression"].item() == pytest.approx(50 * total / (4 * (3 + 1)), rel=1e-5)


def test_an_object_without_overlap_gets_the_anchor_that_is_nearest():
    net = small_spinenet()
    _, anchors, _ = loss_inputs()
    anchor, of_object = net._owned_anchors(torch.tensor([[12.0, 2, 18, 6]]), anchors)
    assert (anchor.tolist(), of_object.tolist()) == ([1], [0])


def test_the_losses_follow_their_arguments():
    outputs, anchors, targets = loss_inputs()

    def losses(**options: float) -> tuple[float, float]:
        found = small_spinenet(**options).compute_loss(targets, outputs, [anchors, anchors])
        return found["classification"].item(), found["bbox_regression"].item()

    usual = losses()
    assert losses(box_weight=25.0) == (usual[0], pytest.approx(usual[1] / 2))
    assert losses(huber_delta=1.0)[1] > usual[1]
    assert losses(focal_gamma=0.0)[0] > usual[0]
    assert losses(focal_alpha=0.5)[0] != usual[0]


# ---- the first weights ----------------------------------------------------------------------------------------------


@BUILDERS
def test_blocks_begin_as_their_shortcuts_if_that_is_asked_for(build: Build):
    def last_scales(**options: bool) -> set[float]:
        blocks = [m for m in build(**options).modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) in {16, 17}
        return {scale for block in blocks for scale in block.branch[-1][1].weight.tolist()}

    assert last_scales() == {1.0}
    assert last_scales(zero_init_last=True) == {0.0}


# ---- contract -------------------------------------------------------------------------------------------------------


@BUILDERS
def test_training_returns_losses_whose_gradients_reach_every_parameter(build: Build, images: Tensor):
    net = build().train()
    for last in (net.head.class_logits, net.head.box_offsets):
        nn.init.normal_(last.weight, std=0.1)  # of 1e-5 nothing would be seen of the gradients
    losses = net(list(images), [target([[4, 4, 30, 40], [30, 30, 90, 92]], [1, 3]), target([[10, 20, 30, 50]], [2])])
    assert set(losses) == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@BUILDERS
def test_images_without_objects_give_finite_losses(build: Build, images: Tensor):
    net = build().train()
    losses = net(list(images), [target([], []), target([], [])])
    sum(losses.values()).backward()
    assert losses["bbox_regression"] == 0
    assert torch.isfinite(losses["classification"])
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@BUILDERS
def test_images_of_96_pixels_are_padded_to_128_and_boxes_stay_inside_96(build: Build, images: Tensor):
    net = build().eval()
    prepared, _ = net.transform(list(images))
    assert prepared.tensors.shape == (2, 1, 128, 128)
    nn.init.zeros_(net.head.class_logits.bias)  # surer than the threshold, so that boxes come out
    with torch.no_grad():
        found = net(list(images))
    assert [each["boxes"].shape for each in found] == [(100, 4)] * 2
    for each in found:
        assert each["boxes"].min() >= 0
        assert each["boxes"].max() <= 96
        assert set(each["labels"].tolist()) <= {1, 2, 3}


@BUILDERS
def test_less_padding_rounds_the_coarsest_maps_up_and_keeps_their_anchors_in_the_middle(build: Build, images: Tensor):
    net = build(size_divisible=32).eval()
    prepared, _ = net.transform(list(images))
    maps = list(net.backbone(prepared.tensors).values())
    assert [each.shape[-1] for each in maps] == [12, 6, 3, 2, 1]
    last = net.anchor_generator(prepared, maps)[0][-9:]
    assert ((last[:, :2] + last[:, 2:]) / 2).tolist() == [[48, 48]] * 9


def test_the_first_logit_is_of_label_1(images: Tensor):
    net = small_spinenet().eval()
    with torch.no_grad():
        net.head.class_logits.bias.view(9, 3)[:, 0] = 5.0
        found = net(list(images))
    assert all(set(each["labels"].tolist()) == {1} for each in found)


@BUILDERS
def test_evaluation_is_the_same_after_a_round_trip(build: Build, images: Tensor, tmp_path: Path):
    net = build().eval()
    nn.init.zeros_(net.head.class_logits.bias)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    again = build().eval()
    again.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.inference_mode():
        first, second = net(list(images)), again(list(images))
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


@BUILDERS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, r"^model\.num_classes=1 must be at least 2; the background counts as one\.$"),
        ({"head_width": 0}, r"^model\.head_width=0 must be at least 1\.$"),
        ({"head_convs": 0}, r"^model\.head_convs=0 must be at least 1\.$"),
        ({"size_divisible": 0}, r"^model\.size_divisible=0 must be at least 1\.$"),
        ({"anchor_scale": 0.0}, r"^model\.anchor_scale=0\.0 must be above 0\.$"),
        ({"huber_delta": -1.0}, r"^model\.huber_delta=-1\.0 must be above 0\.$"),
        ({"box_weight": 0.0}, r"^model\.box_weight=0\.0 must be above 0\.$"),
        ({"focal_alpha": 1.0}, r"^model\.focal_alpha=1\.0 must be between 0 and 1"),
        ({"focal_gamma": -0.5}, r"^model\.focal_gamma=-0\.5 must be 0 or more"),
        ({"stem": "small"}, r"^model\.stem=small .*imagenet, half, full\.$"),
        ({"activation": "gelu"}, r"^model\.activation=gelu .*relu, swish\.$"),
        ({"width": -1.0}, r"^model\.width=-1\.0 "),
        ({"width": 0.001}, r"^model\.width=0\.001 leaves a layer without channels"),
    ],
)
def test_what_does_not_fit_is_refused(build: Build, options, message):
    with pytest.raises(ValueError, match=message):
        on_meta_device(lambda: build(**options))


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"^model\.variant=50 .*49S, 49, 96, 143, 190\.$"):
        spinenet_retinanet(variant=50)


def test_images_of_another_size_are_refused():
    with pytest.raises(
        ValueError, match=r"model\.image_size=96 and model\.in_channels=1, but an image has 1 x 64 x 64"
    ):
        on_meta_device(small_spinenet).eval()([torch.zeros(1, 64, 64)])


# ---- learning -------------------------------------------------------------------------------------------------------


LAPTOP: dict[str, tuple[Build, dict[str, Any]]] = {
    "resnet50": (small_resnet, {"width": 0.25}),
    "49S": (small_spinenet, {"variant": "49S", "width": 0.25, "zero_init_last": True}),
    "49": (small_spinenet, {"variant": "49", "width": 0.25, "zero_init_last": True}),
    "96": (small_spinenet, {"variant": "96", "width": 0.25, "zero_init_last": True}),
    "143": (small_spinenet, {"variant": "143", "width": 0.125, "zero_init_last": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAPTOP)
def test_eight_scenes_are_learnt_by_heart(name: str):
    from convatlas.data.sources.digit_scenes import load

    scenes = load(Path(), scenes=25)
    assert scenes.boxes is not None
    assert scenes.box_labels is not None
    images = list(torch.from_numpy(scenes.images[:8]).float() / 255)
    targets = [
        {"boxes": torch.from_numpy(scenes.boxes[number]), "labels": torch.from_numpy(scenes.box_labels[number])}
        for number in range(8)
    ]
    build, options = LAPTOP[name]
    net = build(head_convs=2, size_divisible=32, num_classes=11, **options).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        sum(net(images, targets).values()).backward()
        optimizer.step()
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    with torch.no_grad():
        metric.update(net.eval()(images), targets)
    assert metric.compute()["map_50"] >= 0.95
