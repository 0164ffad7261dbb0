"""SSDLite: single-shot detection with depthwise separable convolutions, on any of the MobileNets.

Liu et al., "SSD: Single Shot MultiBox Detector" (ECCV 2016), is the detector. Sandler, Howard, Zhu, Zhmoginov, Chen,
"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), section 6.2, make its extra maps and its heads of
depthwise separable convolutions; Howard et al., "Searching for MobileNetV3" (ICCV 2019), section 6.3 and table 6,
compare the backbones. Head, matching, decoding, suppression and the loss by softmax are torchvision's; torchvision's
own net on MobileNetV3-Large is here too. The loss by sigmoids is that of the authors' configurations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import torch
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, ssdlite320_mobilenet_v3_large
from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf
from torchvision.ops import Conv2dNormActivation, batched_nms, clip_boxes_to_image, sigmoid_focal_loss

from convatlas.models.adapters import with_input_channels
from convatlas.models.checks import require_choice, require_object_classes, require_strides, require_width
from convatlas.models.classification.mnasnet import mnasnet_a1
from convatlas.models.classification.mobilenet_v1 import MobileNetV1
from convatlas.models.classification.mobilenet_v2 import mobilenet_v2
from convatlas.models.layers.detector_transform import FixedSizeTransform

EXTRA_CHANNELS = (512, 256, 256, 128)
MIN_CHANNELS = 16
SCALES = (0.2, 0.95)
"""Sides of the square default boxes of the first and of the last map, as shares of the image."""
SHAPES = [2, 3]
"""Sides' ratios of the other default boxes; each comes lying and standing."""
HEAD_CHANNELS = 1280
"""The last 1x1 convolution of MobileNetV2 and MnasNet; in a detector the width thins it too."""
IN_INVERTED_RESIDUALS = ("blocks.5.0.bn1", "bn2")
"""What gives C4 and C5 in a net of timm's inverted residuals."""
V3_STRIDED = {"large": (1, 3, 6, 12), "small": (0, 1, 3, 8)}
"""Places of the blocks that halve the resolution; the first half of the last one gives C4."""


LOSSES: Mapping[str, dict[str, Any]] = {
    "softmax": {"score_thresh": 0.001, "nms_thresh": 0.55, "detections_per_img": 300, "topk_candidates": 300},
    "focal": {"score_thresh": 1e-8, "nms_thresh": 0.6, "detections_per_img": 100, "topk_candidates": 300},
}
"""What becomes of the scores, by the loss they were trained with: torchvision's, and the authors' configurations'."""

Norm = Callable[[int], nn.BatchNorm2d]


class LowestReducedBoxes(DefaultBoxGenerator):
    """SSD's default boxes, six at a place, but three on the first map as in the authors' published configurations.

    The first map has a square of half its scale, and a lying and a standing box of ratio 2. Arguments are those of
    torchvision's `DefaultBoxGenerator`.
    """

    def _generate_wh_pairs(
        self, num_outputs: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> list[Tensor]:
        place = torch.device("cpu") if device is None else device
        pairs = super()._generate_wh_pairs(num_outputs, dtype, place)
        side, root = self.scales[0], math.sqrt(2)
        first = [[side / 2, side / 2], [side * root, side / root], [side / root, side * root]]
        return [torch.tensor(first, dtype=dtype, device=place), *pairs[1:]]

    def num_anchors_per_location(self) -> list[int]:
        return [len(pairs) for pairs in self._wh_pairs]


class FocalSSD(SSD):
    """An SSD whose classes are sigmoids, trained with the focal loss on all default boxes.

    As `ssdlite_mobilenet_v3_small_320x320_coco.config` of TensorFlow's object detection has it: alpha 0.75, gamma 2,
    the background without a class of its own, the loss of a box a mean over its four numbers, scores that begin at
    0.01. Class 0 stays in the output, so that the heads have torchvision's shapes; it is never found.
    """

    ALPHA, GAMMA = 0.75, 2.0
    FIRST_SCORE = 0.01

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        scores: Any = self.head.classification_head
        for head in scores.module_list:
            nn.init.normal_(head[1].weight, std=0.03)
            nn.init.constant_(head[1].bias, -math.log(1 / self.FIRST_SCORE - 1))

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return both losses, divided by the number of default boxes that have an object."""
        logits, regression = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        wanted, distance, objects = torch.zeros_like(logits), regression.new_zeros(()), 0
        for number, (target, match) in enumerate(zip(targets, matched_idxs, strict=True)):
            (found,) = torch.where(match >= 0)
            wanted[number, found, target["labels"][match[found]]] = 1
            offsets = self.box_coder.encode_single(target["boxes"][match[found]], anchors[number][found])
            distance = distance + smooth_l1_loss(regression[number, found], offsets, reduction="sum") / 4
            objects += len(found)
        loss = sigmoid_focal_loss(logits, wanted, alpha=self.ALPHA, gamma=self.GAMMA, reduction="sum")
        return {"bbox_regression": distance / max(1, objects), "classification": loss / max(1, objects)}

    def postprocess_detections(
        self, head_outputs: dict[str, Tensor], image_anchors: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return each image's detections, the surest first."""
        rows = zip(
            head_outputs["bbox_regression"], head_outputs["cls_logits"], image_anchors, image_shapes, strict=True
        )
        return [self._detections(*row) for row in rows]

    def _detections(
        self, regression: Tensor, logits: Tensor, anchors: Tensor, shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        boxes = clip_boxes_to_image(self.box_coder.decode_single(regression, anchors), shape)
        scores, places = logits[:, 1:].sigmoid().topk(min(self.topk_candidates, len(boxes)), dim=0)
        kept, classes = torch.where(scores > self.score_thresh)
        boxes, scores, labels = boxes[places[kept, classes]], scores[kept, classes], classes + 1
        best = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best]}


def extra_map(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """Build what makes the next map; `(B, in, H, W) -> (B, out, ceil(H/2), ceil(W/2))`."""
    unit = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
    middle = out_channels // 2
    return nn.Sequential(
        unit(in_channels, middle, kernel_size=1),
        unit(middle, middle, kernel_size=3, stride=2, groups=middle),
        unit(middle, out_channels, kernel_size=1),
    )


class SSDLiteMaps(nn.Module):
    """The maps that are searched for objects: C4 and C5 of a backbone, and smaller ones made from C5.

    Args:
        nodes: names of what gives C4 (stride 16) and C5 (stride 32) in the backbone.
        extra_channels: channels of the extra maps, each half as large as the one before.
        norm: makes the extra maps' normalisations.

    Attributes:
        channels: of all maps, the largest first.
    """

    def __init__(
        self, net: nn.Module, nodes: tuple[str, str], in_channels: int, extra_channels: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        self.body = create_feature_extractor(net, dict(zip(nodes, ("C4", "C5"), strict=True)))
        self.channels = self._widths(in_channels)
        self.extra = nn.ModuleList()
        for width in extra_channels:
            self.extra.append(extra_map(self.channels[-1], width, norm))
            self.channels.append(width)
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)

    def _widths(self, in_channels: int) -> list[int]:
        """Ask the backbone for the channels of C4 and C5, by an image; its running statistics stay as they are."""
        was_training = self.body.training
        self.body.eval()
        with torch.no_grad():
            image = torch.zeros(1, in_channels, 32, 32, device=next(self.body.parameters()).device)
            maps: Mapping[str, Tensor] = self.body(image)
        self.body.train(was_training)
        return [maps[name].shape[1] for name in ("C4", "C5")]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.body(images)
        x = maps["C5"]
        for number, extra in enumerate(self.extra, start=6):
            x = maps[f"C{number}"] = extra(x)
        return maps


class SSDLiteOptions(TypedDict, total=False):
    """The arguments that all backbones share; see `ssdlite`."""

    extra_channels: tuple[int, ...]
    scales: tuple[float, ...]
    reduce_lowest: bool
    bn_momentum: float
    loss: str
    image_size: int
    num_classes: int


def ssdlite(
    net: nn.Module,
    nodes: tuple[str, str],
    *,
    width: float,
    in_channels: int,
    extra_channels: Sequence[int] = EXTRA_CHANNELS,
    scales: Sequence[float] = SCALES,
    reduce_lowest: bool = True,
    bn_momentum: float = 0.03,
    loss: str = "softmax",
    image_size: int = 320,
    num_classes: int = 91,
) -> SSD:
    """Build an SSDLite on a backbone.

    Its losses are `bbox_regression` and `classification`. Default boxes are fractions of the image, so that any size
    works; the last maps shrink to one pixel below 512, where batch normalisation needs two training images or more.

    Args:
        net: the backbone, for images of `in_channels`.
        nodes: names of what gives C4 and C5 in it.
        width: factor on the channels of the extra maps, which keep 16 at least.
        extra_channels: channels of the extra maps at width 1, each half as large as the one before.
        scales: sides of the square default boxes of the first and of the last map, as shares of the image.
        reduce_lowest: give C4 three default boxes at a place instead of six, see `LowestReducedBoxes`.
        bn_momentum: weight of a new batch in the running statistics, the backbone's too.
        loss: `softmax`, with three times as many hard backgrounds as objects, or `focal`, see `FocalSSD`.
        image_size: side of the images in pixels, 320 in the papers; they are not rescaled.
    """
    extra_channels = [max(MIN_CHANNELS, int(each * width)) for each in extra_channels]
    check_image_size(image_size)
    if not extra_channels or min(extra_channels) < 2:
        raise ValueError(f"model.extra_channels={list(extra_channels)} must be one number or more, each at least 2.")
    if len(scales) != 2 or not 0 < scales[0] <= scales[1] <= 1:
        raise ValueError(
            f"model.scales={list(scales)} must be two rising shares of the image's side, from above 0 to 1; the papers "
            "have 0.2 and 0.95."
        )
    if not 0 < bn_momentum <= 1:
        raise ValueError(f"model.bn_momentum={bn_momentum} must be above 0 and at most 1.")
    require_choice("loss", loss, LOSSES)
    require_object_classes(num_classes)
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    maps = SSDLiteMaps(net, nodes, in_channels, extra_channels, norm)
    kind = LowestReducedBoxes if reduce_lowest else DefaultBoxGenerator
    boxes = kind([SHAPES] * len(maps.channels), scales[0], scales[1])
    detector = (FocalSSD if loss == "focal" else SSD)(
        maps,
        boxes,
        (image_size, image_size),
        num_classes,
        head=SSDLiteHead(maps.channels, boxes.num_anchors_per_location(), num_classes, norm),
        **LOSSES[loss],
    )
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    detector.transform = FixedSizeTransform(image_size, in_channels, size_divisible=1)
    return detector


def check_image_size(image_size: int) -> None:
    """Raise a ValueError if C5 would have no pixel."""
    if image_size < 32:
        raise ValueError(f"model.image_size={image_size} leaves the first map without a pixel; use 32 or more.")


def thinned_head(width: float) -> int:
    """Return the channels of the last 1x1 convolution by a width below 1; the backbones widen it above 1."""
    return round(HEAD_CHANNELS * min(1.0, width) / 8) * 8


def mobilenet_v1_ssdlite(
    *,
    width: float = 1.0,
    strides: tuple[int, ...] = (2, 2, 2, 2, 2),
    middle_layers: int = 5,
    in_channels: int = 3,
    **options: Unpack[SSDLiteOptions],
) -> nn.Module:
    """Build SSDLite on MobileNet; C4 and C5 are the ends of its stages of 512 and 1024 channels.

    Arguments are those of `MobileNetV1` and of `ssdlite`.
    """
    layers: Any = {"strides": strides, "middle_layers": middle_layers}
    net = MobileNetV1(width, **layers, activation="relu6", num_classes=1, in_channels=in_channels)
    return ssdlite(net, ("stages.3", "stages.4"), width=width, in_channels=in_channels, **options)


def mobilenet_v2_ssdlite(
    *,
    width: float = 1.0,
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1),
    repeats: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1),
    in_channels: int = 3,
    **options: Unpack[SSDLiteOptions],
) -> nn.Module:
    """Build SSDLite on MobileNetV2: C4 is the expansion inside the first block of 160 channels, C5 the last layer.

    Arguments are those of `mobilenet_v2` and of `ssdlite`; `width` also thins the last layer and the extra maps.
    """
    head = thinned_head(width)
    stages: Any = {"strides": strides, "repeats": repeats}
    net = mobilenet_v2(width, **stages, head_channels=head, num_classes=1, in_channels=in_channels)
    return ssdlite(net, IN_INVERTED_RESIDUALS, width=width, in_channels=in_channels, **options)


def mnasnet_ssdlite(
    *,
    width: float = 1.0,
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1),
    repeats: tuple[int, ...] = (1, 2, 3, 4, 2, 3, 1),
    in_channels: int = 3,
    **options: Unpack[SSDLiteOptions],
) -> nn.Module:
    """Build SSDLite on MnasNet-A1, which table 6 has beside the MobileNets; arguments as of `mobilenet_v2_ssdlite`."""
    head = thinned_head(width)
    stages: Any = {"strides": strides, "repeats": repeats}
    net = mnasnet_a1(width, **stages, head_channels=head, num_classes=1, in_channels=in_channels)
    return ssdlite(net, IN_INVERTED_RESIDUALS, width=width, in_channels=in_channels, **options)


def mobilenet_v3_ssdlite(
    *,
    variant: str = "large",
    reduced_tail: bool = False,
    width: float = 1.0,
    strides: tuple[int, ...] = (2, 2, 2, 2),
    in_channels: int = 3,
    **options: Unpack[SSDLiteOptions],
) -> nn.Module:
    """Build SSDLite on torchvision's MobileNetV3: C4 is the expansion inside the last block of stride 2.

    Args:
        variant: `large` or `small`.
        reduced_tail: halve the channels between C4 and C5 (section 6.3; the rows with a star in table 6).
        strides: strides of the four blocks that halve the resolution of an image behind the stem; large: rows 2, 4, 7
            and 13 of table 1; small: rows 1, 2, 4 and 9 of table 2.
    """
    require_choice("variant", variant, V3_STRIDED)
    require_width(width)
    places = V3_STRIDED[variant]
    require_strides(strides, len(places))
    rows, last_channels = _mobilenet_v3_conf(f"mobilenet_v3_{variant}", width_mult=width, reduced_tail=reduced_tail)
    for place, stride in zip(places, strides, strict=True):
        rows[place].stride = stride
    net = MobileNetV3(rows, last_channels, num_classes=1, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    first_layers = 1  # the stem stands before the rows in torchvision's list
    nodes = f"features.{first_layers + places[-1]}.block.0", f"features.{first_layers + len(rows)}"
    return ssdlite(with_input_channels(net, in_channels), nodes, width=width, in_channels=in_channels, **options)


def ssdlite_mobilenet_v3_large(image_size: int = 320, num_classes: int = 91, in_channels: int = 3) -> nn.Module:
    """Build torchvision's SSDLite without trained weights, for images of one size.

    It takes and gives what `ssdlite` does.

    Args:
        image_size: side of the images in pixels, 320 in the paper; they are not rescaled.
    """
    check_image_size(image_size)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
    net.transform = FixedSizeTransform(image_size, in_channels, size_divisible=1)
    return with_input_channels(net, in_channels)
