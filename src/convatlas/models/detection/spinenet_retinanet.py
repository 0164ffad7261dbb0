"""RetinaNet on SpineNet, and on the ResNet-FPN that it is compared with.

Du, Lin, Jin, Ghiasi, Tan, Cui, Le, Song, "SpineNet: Learning Scale-Permuted Backbone for Recognition and Localization"
(CVPR 2020), sections 4.1 and 4.2. Both have the same blocks, head, anchors and losses; the pyramid of ResNet (Lin et
al., "Feature Pyramid Networks", CVPR 2017) is as in the authors' published code: P6 is made of P5, and each level ends
with a normalisation.
"""

from collections import OrderedDict

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
    block_group,
    level_strides,
    make_stem,
    zero_last_norms,
)
from convatlas.models.layers.retinanet_head import LevelNormRetinaNet

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


def spinenet_retinanet(
    *,
    variant: str | int = "49",
    permutation: str = "spinenet_49",
    width: float = 1.0,
    endpoint_width: int | None = None,
    head_width: int | None = None,
    head_convs: int | None = None,
    stem: str = "imagenet",
    activation: str = "relu",
    drop_connect_rate: float = 0.0,
    zero_init_last: bool = False,
    anchor_scale: float = 3.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 1.5,
    huber_delta: float = 0.1,
    box_weight: float = 50.0,
    image_size: int = 640,
    size_divisible: int = 128,
    num_classes: int = 91,
    in_channels: int = 3,
) -> nn.Module:
    """Build a RetinaNet on SpineNet without trained weights.

    In training `net(images, targets)` returns the losses `classification` (focal) and `bbox_regression` (Huber, its
    weight included); in evaluation `net(images)` returns boxes, scores and labels of each image. Images are a list, or
    a batch, of tensors `(in_channels, image_size, image_size)` in [0, 1]; targets hold boxes `(n, 4)` as
    `x1, y1, x2, y2` in pixels and labels `(n,)` from 1. An image may have no object.

    Args:
        variant: `49S`, `49`, `96`, `143` or `190`; the paper's image sizes are 640, 640, 1024, 1280 and 1280.
        permutation: wiring of the blocks, a key of `spinenet.PERMUTATIONS`.
        width: factor on all channels, the head's too; 1 is the paper's width.
        endpoint_width: channels of the maps that the head takes; none for the variant's own.
        head_width: channels of the head; none for the variant's own.
        head_convs: convolutions of the head before the last one; none for the variant's own.
        stem: `imagenet` or, for small images, `half` or `full`, see `spinenet.make_stem`.
        activation: `relu`, or `swish` as in the paper's longest trainings.
        drop_connect_rate: stochastic depth of the last block, 0.2 (0.16 for 143) in the paper's longest trainings.
        zero_init_last: residual blocks begin as their shortcuts, so that gradients at the start do not grow with the
            repetitions; the authors' do not. See `spinenet.zero_last_norms`.
        anchor_scale: side of a level's smallest square anchor, in strides of the level: 3, for 143 and 190 it is 4.
        focal_alpha: weight of the objects in the focal loss.
        focal_gamma: exponent of the focal loss.
        huber_delta: error of an offset from which the box loss is linear.
        box_weight: factor on the box loss.
        size_divisible: images are padded to a multiple of this. With 128 every map of the paper's net is exactly as
            large as its stride says; with less the coarsest are rounded up.
    """
    require_choice("variant", str(variant), VARIANTS)
    require_width(width)
    size = VARIANTS[str(variant)]
    return LevelNormRetinaNet(
        SpineNetBackbone(
            variant,
            permutation=permutation,
            width=width,
            endpoint_width=endpoint_width,
            stem=stem,
            activation=activation,
            drop_connect_rate=drop_connect_rate,
            zero_init_last=zero_init_last,
            in_channels=in_channels,
        ),
        head_width=int(size.head_width * width) if head_width is None else head_width,
        head_convs=size.head_convs if head_convs is None else head_convs,
        activation=ACTIVATIONS[activation],
        anchor_scale=anchor_scale,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        huber_delta=huber_delta,
        box_weight=box_weight,
        image_size=image_size,
        size_divisible=size_divisible,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def resnet50_fpn_retinanet(
    *,
    width: float = 1.0,
    head_width: int | None = None,
    head_convs: int = 4,
    stem: str = "imagenet",
    activation: str = "relu",
    zero_init_last: bool = False,
    anchor_scale: float = 3.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 1.5,
    huber_delta: float = 0.1,
    box_weight: float = 50.0,
    image_size: int = 640,
    size_divisible: int = 128,
    num_classes: int = 91,
    in_channels: int = 3,
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
        anchor_scale=anchor_scale,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        huber_delta=huber_delta,
        box_weight=box_weight,
        image_size=image_size,
        size_divisible=size_divisible,
        num_classes=num_classes,
        in_channels=in_channels,
    )
