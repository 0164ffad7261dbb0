"""Detectors: torchvision's own parameter counts and contract, images that are not rescaled, images without objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

from convatlas.models.costs import count_parameters, on_meta_device
from convatlas.models.detection.retinanet import retinanet
from convatlas.models.detection.ssdlite import ssdlite_mobilenet_v3_large

Build = Callable[..., nn.Module]

P6_FROM_C5 = 9 * 256 * (2048 - 256)
"""Weights that P6 has more when it sees C5 (2,048 channels, the paper) than P5 (256, torchvision's first recipe)."""


def small_retinanet(**options: object) -> nn.Module:
    arguments: dict = {
        "backbone": "resnet10t",
        "backbone_options": {"channels": [8, 8, 16, 16], "stem_width": 8},
        "levels": (3, 4),
        "top_levels": False,
        "pyramid_width": 16,
        "head_norm_groups": 4,
        "anchor_scale": 2.0,
        "image_size": 64,
        "num_classes": 4,
        "in_channels": 1,
    }
    return retinanet(**(arguments | options))


def small_ssdlite(**options: object) -> nn.Module:
    return ssdlite_mobilenet_v3_large(**({"image_size": 64, "num_classes": 4, "in_channels": 1} | options))


BUILDERS = pytest.mark.parametrize("build", [small_retinanet, small_ssdlite])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_retinanet_has_the_parameters_of_torchvision_s_with_p6_on_c5() -> None:
    reference = on_meta_device(lambda: retinanet_resnet50_fpn(weights=None, weights_backbone=None))
    assert count_parameters(reference) == 34_068_119
    assert count_parameters(on_meta_device(retinanet)) == 34_068_119 + P6_FROM_C5


def test_with_32_groups_it_has_the_parameters_of_torchvision_s_second_recipe() -> None:
    reference = on_meta_device(lambda: retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None))
    ours = on_meta_device(lambda: retinanet(head_norm_groups=32))
    assert count_parameters(ours) == count_parameters(reference)


def test_ssdlite_has_torchvision_s_3_440_060_parameters() -> None:
    assert count_parameters(on_meta_device(ssdlite_mobilenet_v3_large)) == 3_440_060


def test_grey_images_cost_the_first_convolution_two_channels() -> None:
    grey = on_meta_device(lambda: ssdlite_mobilenet_v3_large(in_channels=1))
    assert count_parameters(grey) == 3_440_060 - 2 * 9 * 16


# ---- contract -------------------------------------------------------------------------------------------------------


@BUILDERS
def test_training_returns_losses_whose_gradients_reach_every_parameter(build: Build, images: Tensor) -> None:
    torch.manual_seed(0)
    net = build().train()
    targets = [target([[4, 4, 30, 40], [30, 30, 60, 62]], [1, 3]), target([[10, 20, 30, 50]], [2])]
    losses = net(list(images), targets)
    assert set(losses) == {"classification", "bbox_regression"}
    sum(losses.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@BUILDERS
@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_objects_give_finite_losses(build: Build, images: Tensor, empty: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = build().train()
    targets = [target([], []) if number in empty else target([[4, 4, 30, 40]], [1]) for number in range(2)]
    losses = net(list(images), targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@BUILDERS
def test_evaluation_returns_boxes_inside_the_image_with_scores_and_labels(build: Build, images: Tensor) -> None:
    torch.manual_seed(0)
    net = build().eval()
    if hasattr(net.head.classification_head, "cls_logits"):
        nn.init.zeros_(net.head.classification_head.cls_logits.bias)  # surer than the threshold, so that boxes come out
    with torch.no_grad():
        found = net(list(images))
    assert len(found) == 2
    for each in found:
        count = len(each["scores"])
        assert count > 0
        assert each["boxes"].shape == (count, 4)
        assert each["labels"].shape == (count,)
        assert each["boxes"].min() >= 0
        assert each["boxes"].max() <= 64
        assert (each["scores"].diff() <= 0).all()
        assert set(each["labels"].tolist()) <= {0, 1, 2, 3}


@BUILDERS
def test_images_reach_the_backbone_unscaled_and_between_minus_one_and_one(build: Build, images: Tensor) -> None:
    net = on_meta_device(build)
    prepared, targets = net.transform(list(images), [target([[1, 2, 3, 4]], [1]), target([], [])])
    torch.testing.assert_close(prepared.tensors, 2 * images - 1)
    assert targets[0]["boxes"].tolist() == [[1, 2, 3, 4]]


@BUILDERS
@pytest.mark.parametrize("shape", [(1, 96, 96), (3, 64, 64), (1, 64, 96)])
def test_images_of_another_shape_are_refused(build: Build, shape: tuple[int, ...]) -> None:
    words = f"model.image_size=64 and model.in_channels=1, but an image has {' x '.join(map(str, shape))}"
    with pytest.raises(ValueError, match=words):
        on_meta_device(build).eval()([torch.zeros(shape)])


# ---- RetinaNet ------------------------------------------------------------------------------------------------------


def test_levels_have_their_strides_and_p6_and_p7_halve_them_further() -> None:
    net = on_meta_device(lambda: small_retinanet(levels=(3, 4, 5), top_levels=True))
    maps = net.backbone(torch.zeros(1, 1, 128, 128, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(16, s, s) for s in (16, 8, 4, 2, 1)]


def test_anchors_of_a_level_are_the_paper_s() -> None:
    """At stride 8: areas 32^2, (32 * 2^(1/3))^2 and (32 * 2^(2/3))^2, each 1:2, 1:1 and 2:1, up to whole pixels."""
    net = on_meta_device(lambda: small_retinanet(anchor_scale=4.0))
    picture = ImageList(torch.zeros(1, 1, 64, 64), [(64, 64)])
    anchors = net.anchor_generator(picture, [torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 4, 4)])[0]
    assert len(anchors) == 9 * (64 + 16)
    sides = anchors[:9, 2:] - anchors[:9, :2]
    expected = [
        (32 * 2 ** (third / 3) / ratio**0.5, 32 * 2 ** (third / 3) * ratio**0.5)
        for ratio in (0.5, 1.0, 2.0)
        for third in range(3)
    ]
    torch.testing.assert_close(sides, torch.tensor(expected), atol=1.0, rtol=0)


def test_p6_sees_the_backbone_s_last_map_even_where_widths_are_equal() -> None:
    net = on_meta_device(lambda: small_retinanet(levels=(3, 4), top_levels=True, pyramid_width=16))
    assert net.backbone.pyramid.extra_blocks.use_P5 is False


@pytest.mark.parametrize(("options", "words"), [
    ({"backbone": "resnet5O"}, r"model.backbone=resnet5O: timm has no such net. Did you mean .*resnet50"),
    ({"levels": (4, 3)}, r"model.levels=\[4, 3\]: .* rising, any of \[1, 2, 3, 4, 5\]"),
    ({"levels": (5, 6)}, r"model.levels=\[5, 6\]"),
    ({"levels": ()}, r"model.levels=\[\]"),
    ({"backbone_options": {"chanels": [8]}}, r"model.backbone_options=.*chanels"),
    ({"backbone": "mixer_b16_224", "backbone_options": {}}, r"model.backbone=mixer_b16_224 .* any of \[4\]"),
    ({"head_norm_groups": 5}, r"model.head_norm_groups=5 does not divide model.pyramid_width=16; .*\[1, 2, 4, 8, 16\]"),
])  # fmt: skip
def test_options_that_make_no_retinanet(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_retinanet(**options)


def test_ssdlite_refuses_images_without_a_first_map() -> None:
    with pytest.raises(ValueError, match=r"model\.image_size=16"):
        ssdlite_mobilenet_v3_large(image_size=16)
