"""ShuffleNet V2: half of the channels pass a unit untouched, then all are shuffled.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (ECCV 2018), section
3. As in the authors' released nets a unit of stride 2 keeps the input's channels in its short branch and makes the
others in the long one (torchvision gives each branch half), and the classifier has no bias; this gives the paper's
multiply-adds.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from convatlas.models.checks import require_choice
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.shuffle import STEMS, shuffle_stages
from convatlas.models.layers.shuffle import stem as make_stem

CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
"""Table 5: output channels of stages 2, 3, 4 and of the last 1x1 convolution, by width."""


class ShuffleNetV2(PooledClassifier):
    """ShuffleNet V2 of any width (table 5): stem, three stages, a 1x1 convolution, global pooling, one linear layer.

    Args:
        stage_channels: output channels of stages 2, 3 and 4; even, and growing from the stem's.
        repeats: units of the three stages, the one with stride 2 included.
        stem: `imagenet` (3x3 convolution and 3x3 max pooling, both with stride 2) or `small`, for small images (the
            convolution with stride 1, no pooling).
    """

    def __init__(
        self,
        stage_channels: Sequence[int] = CHANNELS[1.0][:3],
        head_channels: int = CHANNELS[1.0][3],
        *,
        repeats: Sequence[int] = (4, 8, 4),
        stem: str = "imagenet",
        stem_channels: int = 24,
        classifier_bias: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [stem_channels, *stage_channels]
        grows = all(before < after for before, after in pairwise(widths))
        if len(widths) != 4 or not grows or any(channels % 2 for channels in stage_channels):
            raise ValueError(
                f"model.stage_channels={list(stage_channels)} must be three even numbers that grow from "
                f"model.stem_channels={stem_channels}, for example 48, 96, 192."
            )
        require_choice("stem", stem, STEMS)
        self.stem = make_stem(in_channels, stem_channels, STEMS[stem])
        self.stages = shuffle_stages(widths, repeats)
        self.head = ConvNormAct(widths[-1], head_channels)
        self.classifier = nn.Linear(head_channels, num_classes, bias=classifier_bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, head_channels, H/32, W/32)`; H/8, W/8 with the small stem."""
        return self.head(self.stages(self.stem(images)))


def shufflenet_v2(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> ShuffleNetV2:
    """Build a net of table 5.

    Args:
        width: 0.5, 1.0, 1.5 or 2.0.
    """
    if width not in CHANNELS:
        raise ValueError(
            f"model.width={width}: table 5 of the paper has 0.5, 1.0, 1.5 and 2.0; for another net use "
            "model=shufflenet_v2_small with its model.stage_channels."
        )
    *stages, head = CHANNELS[width]
    return ShuffleNetV2(stages, head, num_classes=num_classes, in_channels=in_channels)
