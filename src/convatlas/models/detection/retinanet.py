"""RetinaNet: one-stage detection with focal loss, on a feature pyramid over any convolutional backbone.

Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection" (ICCV 2017), section 4. Detector, head,
anchors and pyramid are torchvision's; the backbone is any net of timm that gives feature maps.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from convatlas.core.errors import near_matches
from convatlas.models.layers.detector_transform import FixedSizeTransform

PADDING = 32
"""Images are padded to a multiple of the stride of the backbone's last map, as torchvision has it."""


class PyramidBackbone(nn.Module):
    """A backbone of timm under a feature pyramid (Lin et al., CVPR 2017).

    Level l has stride 2^l: `(B, C, H, W)` becomes maps `(B, width, H / 2^l, W / 2^l)` of each level.

    Args:
        name: a net of timm that gives feature maps, for example `resnet50`.
        levels: rising numbers of the levels that are taken from the backbone; the paper takes 3, 4 and 5.
        top: add P6 and P7 by 3x3 convolutions of stride 2, the first on the backbone's last map.
        width: channels of all levels.
    """

    def __init__(
        self, name: str, options: dict[str, Any], *, levels: tuple[int, ...], top: bool, width: int, in_channels: int
    ) -> None:
        super().__init__()
        numbers = _map_numbers(name, options, levels)
        body: Any = timm.create_model(name, features_only=True, in_chans=in_channels, out_indices=numbers, **options)
        self.body = body
        widths = body.feature_info.channels()
        extra = LastLevelP6P7(widths[-1], width) if top else None
        if extra is not None:
            extra.use_P5 = False  # torchvision takes P5 where the widths happen to be equal; the paper takes C5
        self.pyramid = FeaturePyramidNetwork(widths, width, extra)
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return self.pyramid(OrderedDict((str(number), each) for number, each in enumerate(maps)))


def _map_numbers(name: str, options: dict[str, Any], levels: tuple[int, ...]) -> tuple[int, ...]:
    """Return which of the backbone's maps are those levels."""
    if not timm.is_model(name):
        raise ValueError(f"model.backbone={name}: timm has no such net. {near_matches(name, timm.list_models())}")
    try:
        with torch.device("meta"):
            body: Any = timm.create_model(name, features_only=True, **options)
        strides = body.feature_info.reduction()
    except TypeError as error:
        raise ValueError(f"model.backbone_options={options}: {error}; see timm's documentation of {name}.") from error
    wanted = [2**level for level in levels]
    if not levels or wanted != sorted(set(wanted)) or not set(wanted) <= set(strides):
        there = sorted({stride.bit_length() - 1 for stride in strides})
        raise ValueError(f"model.levels={list(levels)}: of model.backbone={name} one can take, rising, any of {there}.")
    return tuple(strides.index(stride) for stride in wanted)


def retinanet(
    *,
    backbone: str = "resnet50",
    backbone_options: dict[str, Any] | None = None,
    levels: tuple[int, ...] = (3, 4, 5),
    top_levels: bool = True,
    pyramid_width: int = 256,
    head_norm_groups: int = 0,
    anchor_scale: float = 4.0,
    image_size: int = 600,
    num_classes: int = 91,
    in_channels: int = 3,
) -> nn.Module:
    """Build a RetinaNet without trained weights.

    Its losses are `classification` (focal) and `bbox_regression`.

    Args:
        backbone: a net of timm that gives feature maps.
        backbone_options: its keyword arguments, for example `{channels: [16, 32, 64, 128]}` of a ResNet.
        levels: levels of the pyramid that are taken from the backbone; level l has stride 2^l.
        top_levels: add P6 and P7 above them.
        pyramid_width: channels of the pyramid and of the head's four convolutions.
        head_norm_groups: groups of a group normalisation behind each convolution of the head; 0 for none, as the paper.
            Narrow heads need it: their weights start with the paper's std of 0.01, which lets four layers
            of 256 channels learn and starves four of 48. torchvision's second recipe has 32 groups.
        anchor_scale: side of a level's smallest square anchor, in strides of that level; the paper's is 4 (32 pixels
            at stride 8). Each place has nine anchors: three sizes within an octave, each in three shapes.
    """
    if head_norm_groups < 0 or (head_norm_groups and pyramid_width % head_norm_groups):
        raise ValueError(
            f"model.head_norm_groups={head_norm_groups} does not divide model.pyramid_width={pyramid_width}; "
            f"take one of {[n for n in range(1, pyramid_width + 1) if pyramid_width % n == 0]}, or 0 for none."
        )
    body = PyramidBackbone(
        backbone, backbone_options or {}, levels=levels, top=top_levels, width=pyramid_width, in_channels=in_channels
    )
    every_level = [*levels, levels[-1] + 1, levels[-1] + 2] if top_levels else list(levels)
    sizes = tuple(tuple(anchor_scale * 2 ** (level + third / 3) for third in range(3)) for level in every_level)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    norm = partial(nn.GroupNorm, head_norm_groups) if head_norm_groups else None
    head = RetinaNetHead(pyramid_width, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    net = RetinaNet(body, num_classes, anchor_generator=anchors, head=head)
    net.transform = FixedSizeTransform(image_size, in_channels, size_divisible=PADDING)
    return net
