"""SNet: ShuffleNet V2 made into a backbone for detection, with 5x5 depthwise convolutions.

Qin, Li, Zhang, Bao, Yu, Peng, Sun, "ThunderNet: Towards Real-time Generic Object Detection" (ICCV 2019), section 3.1
and table 1. The units are ShuffleNet V2's (Ma et al., ECCV 2018, figure 3); both branches of a unit of stride 2 give
half of its channels. The numbers in the names are the paper's million multiply-adds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_positive
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.shuffle import shuffle_stages, stem

KERNEL = 5
"""Side of the depthwise filters: a wider field of view than ShuffleNet V2's 3 for hardly more cost."""
REPEATS = (4, 8, 4)


@dataclass(frozen=True)
class Variant:
    """A column of table 1; 146 and 535 have no conv5."""

    stem_channels: int
    stage_channels: tuple[int, int, int]
    last_channels: int | None


VARIANTS = {
    "49": Variant(24, (60, 120, 240), 512),
    "146": Variant(24, (132, 264, 528), None),
    "535": Variant(48, (248, 496, 992), None),
}


class SNet(PooledClassifier):
    """SNet of any width: stem, three stages, a 1x1 convolution or none, global average pooling, one linear layer.

    Args:
        stage_channels: channels of stages 2, 3 and 4, even.
        last_channels: channels of conv5, the 1x1 convolution behind stage 4; none leaves it out.
        stem_stride: 4 for the paper's stem, a 3x3 convolution and 3x3 max pooling, both of stride 2; 2 leaves the
            pooling out; 1 gives the convolution stride 1 as well, for small images.
        repeats: units of the three stages, the one of stride 2 included.

    Attributes:
        map_channels: channels of C4 and C5.
        map_strides: their strides, in pixels.
    """

    def __init__(
        self,
        stage_channels: Sequence[int] = VARIANTS["49"].stage_channels,
        last_channels: int | None = VARIANTS["49"].last_channels,
        *,
        stem_channels: int = 24,
        stem_stride: int = 4,
        repeats: Sequence[int] = REPEATS,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if len(stage_channels) != 3 or min(stage_channels) < 2 or any(width % 2 for width in stage_channels):
            raise ValueError(
                f"model.stage_channels={list(stage_channels)} must be three even numbers, each at least 2, for example "
                "60, 120, 240."
            )
        if stem_stride not in {1, 2, 4}:
            raise ValueError(f"model.stem_stride={stem_stride} must be 1, 2 or 4; 4 is the paper's.")
        if last_channels is not None:
            require_positive("last_channels", last_channels)
        require_positive("stem_channels", stem_channels)
        self.stem = stem(in_channels, stem_channels, stem_stride)
        self.stages = shuffle_stages((stem_channels, *stage_channels), repeats, KERNEL, equal=True)
        _, before_last, features = stage_channels
        self.conv5: nn.Module = nn.Identity()
        if last_channels is not None:
            self.conv5, features = ConvNormAct(features, last_channels), last_channels
        self.classifier = nn.Linear(features, num_classes)
        self.map_channels = (before_last, features)
        self.map_strides = (4 * stem_stride, 8 * stem_stride)

    def forward_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a detector takes: C4, the end of stage 3, and C5, the end of all.

        `(B, C, H, W)` becomes `(B, map_channels[0], H/16, W/16)` and `(B, map_channels[1], H/32, W/32)`, with the
        paper's stem. C5 is conv5 where there is one (SNet49), otherwise the end of stage 4.
        """
        stage2, stage3, stage4 = self.stages
        c4 = stage3(stage2(self.stem(images)))
        return c4, self.conv5(stage4(c4))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, map_channels[1], H/32, W/32)` with the paper's stem."""
        return self.forward_maps(images)[1]


def snet(variant: str | int = "49", num_classes: int = 1000, in_channels: int = 3) -> SNet:
    """Build a net of table 1.

    Args:
        variant: `49`, `146` or `535`.
    """
    require_choice("variant", str(variant), VARIANTS)
    size = VARIANTS[str(variant)]
    return SNet(
        size.stage_channels,
        size.last_channels,
        stem_channels=size.stem_channels,
        num_classes=num_classes,
        in_channels=in_channels,
    )
