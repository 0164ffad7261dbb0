"""SqueezeNext: a two-stage squeeze and 3x3 convolutions taken apart into 3x1 and 1x3.

Gholami et al., "SqueezeNext: Hardware-Aware Neural Network Design" (CVPR workshops 2018), section 2, with the details
of the nets that the authors released: no convolution and no linear layer has a bias, the 3x1 and the 1x3 convolution
change places from block to block, and in version 5 the residual branch starts behind the shortcut's convolution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_counts, require_image_size
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.conv_norm import ConvNormAct

WIDTHS = (32, 64, 128, 256)
STEM_CHANNELS = 64
HEAD_CHANNELS = 128


class Version(NamedTuple):
    """What sets one released version apart."""

    stem_kernel: int
    blocks: tuple[int, int, int, int]
    branch_behind_shortcut: bool


VERSIONS = {
    "v1": Version(7, (6, 6, 8, 1), branch_behind_shortcut=False),
    "v5": Version(5, (2, 4, 14, 1), branch_behind_shortcut=True),
}
"""v5 moves blocks from the first stages, which use the authors' accelerator badly, to the third (section 3.2)."""


class SqueezeNextBlock(nn.Module):
    """Figure 1, right: 1x1 to a half, 1x1 to a quarter, 3x1 and 1x3 to a half, 1x1 to all `out` channels, added to x.

    `(B, in, H, W) -> (B, out, H/stride, W/stride)`. The first block of a stage has a 1x1 convolution as shortcut, even
    where the shape stays. With `branch_behind_shortcut` the residual branch takes the shortcut's result instead of x.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        first_in_stage: bool = False,
        vertical_first: bool = True,
        groups: int = 1,
        branch_behind_shortcut: bool = False,
    ) -> None:
        super().__init__()
        half, quarter = out_channels // 2, out_channels // 4
        self.shortcut = ConvNormAct(in_channels, out_channels, stride=stride) if first_in_stage else nn.Identity()
        self.branch_behind_shortcut = branch_behind_shortcut
        if branch_behind_shortcut:  # it has the block's width and resolution already
            in_channels, stride = out_channels, 1
        first, second = ((3, 1), (1, 3)) if vertical_first else ((1, 3), (3, 1))
        self.branch = nn.Sequential(
            ConvNormAct(in_channels, half, stride=stride, groups=groups),
            ConvNormAct(half, quarter),
            ConvNormAct(quarter, half, first, groups=groups),
            ConvNormAct(half, half, second, groups=groups),
            ConvNormAct(half, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return F.relu(shortcut + self.branch(shortcut if self.branch_behind_shortcut else x))


class SqueezeNext(PooledClassifier):
    """SqueezeNext of 23 layers: a stem, 21 blocks in four stages, a 1x1 convolution, global pooling, one linear layer.

    Args:
        width: factor of the stages' channels; the paper has 1.0, 1.5 and 2.0.
        version: `v1`, or `v5` with other numbers of blocks and a 5x5 stem.
        groups: groups of each block's first 1x1, its 3x1 and its 1x3 convolution; 2 is the paper's 1.0-G-SqNxt-23.
        blocks: blocks of the four stages; null takes the version's.
        stem: `imagenet` (7x7 or 5x5 convolution with stride 2 and 3x3 max pooling with stride 2, both without padding)
            or `small`, for small images (3x3 convolution with stride 2, no pooling).
    """

    def __init__(
        self,
        width: float = 1.0,
        version: str = "v1",
        *,
        groups: int = 1,
        blocks: Sequence[int] | None = None,
        stem: str = "imagenet",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("version", version, VERSIONS)
        require_choice("stem", stem, ("imagenet", "small"))
        released = VERSIONS[version]
        blocks = released.blocks if blocks is None else blocks
        require_counts("blocks", blocks, len(WIDTHS))
        if groups < 1 or STEM_CHANNELS % groups:
            raise ValueError(
                f"model.groups={groups} does not divide the stem's {STEM_CHANNELS} channels; choose 1 or 2."
            )
        narrowest, step = WIDTHS[0] * width, 4 * groups / WIDTHS[0]
        if narrowest <= 0 or narrowest % (4 * groups):
            raise ValueError(
                f"model.width={width} with model.groups={groups} gives blocks whose quarter does not divide into the "
                f"groups; model.width must be a multiple of {step:g}."
            )
        self.stem = self._stem(stem, in_channels, released.stem_kernel)
        # The pooling needs two pixels of the convolution.
        self.smallest_image = released.stem_kernel + 2 if stem == "imagenet" else 1
        self.stages = nn.Sequential()
        channels = STEM_CHANNELS
        for full_channels, count, stride in zip(WIDTHS, blocks, (1, 2, 2, 2), strict=True):
            stage = nn.Sequential()
            for index in range(count):
                first = index == 0
                options: Any = {"stride": stride if first else 1, "first_in_stage": first, "groups": groups}
                options |= {"vertical_first": index % 2 == 0, "branch_behind_shortcut": released.branch_behind_shortcut}
                stage.append(SqueezeNextBlock(channels, int(full_channels * width), **options))
                channels = int(full_channels * width)
            self.stages.append(stage)
        self.head = ConvNormAct(channels, HEAD_CHANNELS)
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes, bias=False)

    @staticmethod
    def _stem(kind: str, in_channels: int, kernel: int) -> nn.Sequential:
        if kind == "small":
            return ConvNormAct(in_channels, STEM_CHANNELS, (3, 3), stride=2)
        convolution = ConvNormAct(in_channels, STEM_CHANNELS, kernel, stride=2, padding=0)
        return nn.Sequential(*convolution, nn.MaxPool2d(3, stride=2, ceil_mode=True))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 128, H/32, W/32)`; H/16, W/16 with the small stem."""
        require_image_size(images, self.smallest_image, "SqueezeNext with this stem")
        return self.head(self.stages(self.stem(images)))
