"""Darknet-53 and the ResNets of the authors of CSPNet: stages of residual blocks, with which CSPNets are compared.

Redmon, Farhadi, "YOLOv3: An Incremental Improvement" (2018), table 1; every width, depth and activation follows the
published darknet files (darknet53.cfg, resnet50.cfg, resnext50.cfg).
"""

from collections.abc import Sequence
from functools import partial
from typing import TypedDict, Unpack

from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_image_size, require_positive
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.conv_norm import ACTIVATIONS, conv_norm, initialise_convolutions
from convatlas.models.layers.shortcuts import ZeroPadShortcut

STEMS = ("large", "small")


class StemOptions(TypedDict, total=False):
    """The arguments that the ResNets and ResNeXts share.

    `stem`: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2). `stem_channels`: filters of the stem, at
    most the first stage's channels. `activation`: `leaky`, or `mish` as in the released -omega.cfg.
    """

    stem: str
    stem_channels: int
    activation: str
    num_classes: int
    in_channels: int


class Bottleneck(nn.Module):
    """1x1, 3x3 and a linear 1x1 convolution beside a shortcut without weights, and the activation behind the sum.

    `(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))`. Where the shape changes, darknet adds the channels that
    both sides have, of every `stride`-th pixel; neither ResNet-50 nor ResNeXt-50 of the authors has a projection.
    """

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, *, stride: int = 1, groups: int = 1, activation: str
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(in_channels, inner, 1, activation=activation),
            conv_norm(inner, inner, 3, stride=stride, groups=groups, activation=activation),
            conv_norm(inner, out_channels, 1, activation=None),
        )
        self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


class DarknetBlock(nn.Module):
    """Darknet-53's block: 1x1 and 3x3 convolutions, both activated, and a sum that is not; the shape stays."""

    def __init__(self, channels: int, inner: int, activation: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(channels, inner, 1, activation=activation), conv_norm(inner, channels, 3, activation=activation)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class StagedNet(PooledClassifier):
    """A stem, stages, the mean over all places and a linear layer: `(B, C, H, W) -> (B, num_classes)`.

    Attributes:
        stage_channels: channels of each stage's map.
        stage_strides: pixels of the image per pixel of each stage's map.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        *,
        first_stride: int,
        num_classes: int,
        smallest_image: int = 1,
    ) -> None:
        super().__init__()
        self.smallest_image = smallest_image
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.classifier: nn.Module = nn.Linear(channels[-1], num_classes)
        self.stage_channels = tuple(channels)
        self.stage_strides = tuple(first_stride * 2**number for number in range(len(channels)))
        initialise_convolutions(self)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the map of every stage, `(B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])`."""
        require_image_size(images, self.smallest_image, "this net")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, channels, H', W')`, the last stage's map."""
        return self.forward_pyramid(images)[-1]


def check_stages(blocks: Sequence[int], channels: Sequence[int], divisor: int, activation: str) -> None:
    """Raise a ValueError unless there are blocks and channels for every stage, the latter multiples of `divisor`."""
    require_choice("activation", activation, ACTIVATIONS)
    if not blocks or len(blocks) != len(channels):
        raise ValueError(
            f"model.blocks={list(blocks)} names {len(blocks)} stages and model.channels={list(channels)} "
            f"{len(channels)}; give one number of each for every stage."
        )
    if min(blocks) < 1:
        raise ValueError(f"model.blocks={list(blocks)} must be at least 1 in every stage.")
    if any(width < divisor or width % divisor for width in channels):
        raise ValueError(f"model.channels={list(channels)} must be multiples of {divisor} here.")


def pooled_stem(kind: str, in_channels: int, out_channels: int, activation: str) -> tuple[nn.Module, int]:
    """Build the stem of the ResNets and return it with its stride.

    `large`: 7x7 with stride 2, and maximum pooling 2x2; `small`: 3x3 with stride 2, for images of about 32 pixels.
    """
    require_choice("stem", kind, STEMS)
    require_positive("stem_channels", out_channels)
    if kind == "small":
        return conv_norm(in_channels, out_channels, 3, stride=2, activation=activation), 2
    convolution = conv_norm(in_channels, out_channels, 7, stride=2, activation=activation)
    return nn.Sequential(convolution, nn.MaxPool2d(2, ceil_mode=True)), 4  # darknet's maps of odd size round up


def darknet_resnet50(
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    channels: Sequence[int] = (256, 512, 1024, 2048),
    **options: Unpack[StemOptions],
) -> StagedNet:
    """Build the ResNet-50 that CSPResNet-50 is compared with (resnet50.cfg): leaky ReLU, shortcuts without weights.

    `channels` are what each stage puts out; its blocks have a quarter inside.
    """
    return _bottlenecks(blocks, channels, narrowing=4, groups=1, **options)


def darknet_resnext50(
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    channels: Sequence[int] = (256, 512, 1024, 2048),
    groups: int = 32,
    **options: Unpack[StemOptions],
) -> StagedNet:
    """Build the ResNeXt-50 that CSPResNeXt-50 is compared with (resnext50.cfg).

    `channels` are what each stage puts out; its blocks have half of them inside. `groups` are of the 3x3 convolutions.
    """
    require_positive("groups", groups)
    return _bottlenecks(blocks, channels, narrowing=2, groups=groups, **options)


def _bottlenecks(
    blocks: Sequence[int],
    channels: Sequence[int],
    *,
    narrowing: int,
    groups: int,
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    check_stages(blocks, channels, narrowing * groups, activation)
    first, stride = pooled_stem(stem, in_channels, stem_channels, activation)
    widths = [stem_channels, *channels]
    if widths != sorted(widths):
        raise ValueError(
            f"model.channels={list(channels)} must not be less than model.stem_channels={stem_channels} nor fall from "
            "stage to stage: shortcuts without weights can only add channels."
        )
    stages = []
    for number, (count, before, width) in enumerate(zip(blocks, widths[:-1], channels, strict=True)):
        block = partial(Bottleneck, inner=width // narrowing, out_channels=width, groups=groups, activation=activation)
        first_block = block(before, stride=2 if number > 0 else 1)
        stages.append(nn.Sequential(first_block, *(block(width) for _ in range(count - 1))))
    return StagedNet(first, stages, channels, first_stride=stride, num_classes=num_classes)


def darknet53(
    *,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    channels: Sequence[int] = (64, 128, 256, 512, 1024),
    stem_channels: int = 32,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build Darknet-53 (darknet53.cfg; Redmon and Farhadi 2018, table 1).

    `channels` are what each stage puts out; its blocks have half of them inside.
    """
    check_stages(blocks, channels, 2, activation)
    require_positive("stem_channels", stem_channels)
    stages = [
        nn.Sequential(
            conv_norm(before, out, 3, stride=2, activation=activation),
            *(DarknetBlock(out, out // 2, activation) for _ in range(count)),
        )
        for count, before, out in zip(blocks, [stem_channels, *channels[:-1]], channels, strict=True)
    ]
    first = conv_norm(in_channels, stem_channels, 3, activation=activation)
    return StagedNet(first, stages, channels, first_stride=2, num_classes=num_classes)
