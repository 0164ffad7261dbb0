"""RetinaNet on SpineNet, and on the ResNet-FPN that it is compared with.

Du, Lin, Jin, Ghiasi, Tan, Cui, Le, Song, "SpineNet: Learning Scale-Permuted Backbone for Recognition and Localization"
(CVPR 2020), sections 4.1 and 4.2. Both have the same blocks, head, anchors and losses; the pyramid of ResNet (Lin et
al., "Feature Pyramid Networks", CVPR 2017) is as in the authors' published code: P6 is made of P5, and each level ends
with a normalisation.
"""

from collections import OrderedDict
from typing import Any, Unpack

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from convatlas.models.checks import require_choice, require_width
from convatlas.models.classification.spinenet import (
    ACTIVATIONS,
    ALLOCATIONS,
    EXPANSION,
    OUTPUT_LEVELS,
    STEM_STRIDES,
    STEM_WIDTH,
    VARIANTS,
    SpineNetBackbone,
    SpineNetOptions,
    block_group,
    level_strides,
    make_stem,
    zero_last_norms,
)
from convatlas.models.layers.retinanet_head import LevelNormRetinaNet, RetinaNetOptions

PYRAMID_WIDTH = 256


class ResNetPyramid(nn.Module):
    """ResNet-50 under a feature pyramid: `(B, C, H, W)` becomes the maps P3 to P7, the finest first.

    Args:
        stem: `imagenet`, `half` or `full`, see `spinenet.make_stem`.
        zero_init_last: residual blocks begin as their shortcuts, see `spinenet.zero_last_norms`.

    Attributes:
        out_channels: channels of every map.
        strides: by how much every map is smaller than the images.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        stem: str = "imagenet",
        activation: str = "relu",
        zero_init_last: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_width(width)
        require_choice("stem", stem, STEM_STRIDES)
        require_choice("activation", activation, ACTIVATIONS)
        stem_width = int(STEM_WIDTH * width)
        if stem_width < 1:
            raise ValueError(f"model.width={width} leaves a layer without channels; use {1 / STEM_WIDTH:.3g} or more.")
        self.stem = make_stem(stem, in_channels, stem_width, activation)
        self.stages = nn.ModuleList()
        taken, given = stem_width, []
        for number, repeats in enumerate(ALLOCATIONS["r50"].stem):
            filters, stride = int(STEM_WIDTH * width * 2**number), 2 if number else 1
            stage = block_group("bottleneck", taken, filters, stride=stride, repeats=repeats, activation=activation)
            self.stages.append(stage)
            taken = filters * EXPANSION["bottleneck"]
            given.append(taken)
        self.out_channels = int(PYRAMID_WIDTH * width)
        self.strides = level_strides(stem)
        top = LastLevelP6P7(self.out_channels, self.out_channels)  # of equal channels: P6 is made of P5
        self.pyramid = FeaturePyramidNetwork(given[1:], self.out_channels, top)
        self.norms = nn.ModuleDict(
            {f"P{level}": nn.BatchNorm2d(self.out_channels, eps=1e-3) for level in OUTPUT_LEVELS}
        )
        if zero_init_last:
            zero_last_norms(self)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps `P3` to `P7`, `(B, out_channels, H/stride, W/stride)`, rounded up."""
        x = self.stem(images)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for level, stage in enumerate(self.stages, start=2):
            x = stage(x)
            if level in OUTPUT_LEVELS:
                maps[f"P{level}"] = x
        levels = self.pyramid(maps).values()
        return {name: norm(x) for (name, norm), x in zip(self.norms.items(), levels, strict=True)}


class SpineNetRetinaNetOptions(RetinaNetOptions, SpineNetOptions, total=False):
    """What `spinenet_retinanet` hands on to `LevelNormRetinaNet` and to `SpineNetBackbone`."""


def spinenet_retinanet(
    *,
    variant: str | int = "49",
    endpoint_width: int | None = None,
    head_width: int | None = None,
    head_convs: int | None = None,
    **options: Unpack[SpineNetRetinaNetOptions],
) -> nn.Module:
    """Build a RetinaNet on SpineNet without trained weights.

    Its losses are `classification` (focal) and `bbox_regression` (Huber, its weight included).

    Args:
        variant: `49S`, `49`, `96`, `143` or `190`; the paper's image sizes are 640, 640, 1024, 1280 and 1280.
        endpoint_width: channels of the maps that the head takes; None for the variant's own.
        head_width: channels of the head; None for the variant's own, times `width`.
        head_convs: convolutions of the head before the last one; None for the variant's own.
        options: see `LevelNormRetinaNet` and `SpineNetBackbone`. The paper's longest trainings have `activation=swish`
            and `drop_connect_rate=0.2` (0.16 for 143).
    """
    require_choice("variant", str(variant), VARIANTS)
    width = options.get("width", 1.0)
    require_width(width)
    size = VARIANTS[str(variant)]
    backbone: Any = {key: value for key, value in options.items() if key in SpineNetOptions.__annotations__}
    detector: Any = {key: value for key, value in options.items() if key not in backbone or key == "in_channels"}
    return LevelNormRetinaNet(
        SpineNetBackbone(variant, endpoint_width=endpoint_width, **backbone),
        head_width=int(size.head_width * width) if head_width is None else head_width,
        head_convs=size.head_convs if head_convs is None else head_convs,
        activation=ACTIVATIONS[options.get("activation", "relu")],
        **detector,
    )


def resnet50_fpn_retinanet(
    *,
    width: float = 1.0,
    head_width: int | None = None,
    head_convs: int = 4,
    stem: str = "imagenet",
    activation: str = "relu",
    zero_init_last: bool = False,
    in_channels: int = 3,
    **options: Unpack[RetinaNetOptions],
) -> nn.Module:
    """Build the RetinaNet on ResNet-50-FPN that the paper sets beside SpineNet-49: see `spinenet_retinanet`."""
    backbone = ResNetPyramid(
        width=width, stem=stem, activation=activation, zero_init_last=zero_init_last, in_channels=in_channels
    )
    return LevelNormRetinaNet(
        backbone,
        head_width=backbone.out_channels if head_width is None else head_width,
        head_convs=head_convs,
        activation=ACTIVATIONS[activation],
        in_channels=in_channels,
        **options,
    )
