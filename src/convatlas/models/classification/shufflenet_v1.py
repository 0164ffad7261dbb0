"""ShuffleNet: grouped 1x1 convolutions, and a shuffle of the channels between them.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR
2018), section 3. Where the paper is silent (the stem's width in thin nets, no bias in the classifier) the nets are
those that the authors released.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_counts
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.shuffle import STEMS, ChannelShuffle
from convatlas.models.layers.shuffle import stem as make_stem

STAGE2_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Table 1: output channels of stage 2 by groups, chosen for about equal cost; each later stage has twice as many."""

RELEASED_STEMS = {3: {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}, 8: {0.5: 16, 1.0: 24, 1.5: 24, 2.0: 48}}
"""Filters of the stem in the released nets, by groups and width; at 1.5 fewer than 1.5 times the paper's 24."""


def multiple_above(number: float, divisor: int) -> int:
    """Return the smallest multiple of `divisor` that is not below `number`."""
    return math.ceil(number / divisor) * divisor


def nearest_multiple(number: float, divisor: int) -> int:
    """Return the multiple of `divisor` nearest to `number`, at least `divisor` itself; the larger one if two are."""
    return max(int(number / divisor + 0.5), 1) * divisor


class ShuffleUnit(nn.Module):
    """Figure 2 (b) and, with stride 2, (c); `(B, in, H, W) -> (B, out, H/stride, W/stride)`.

    A grouped 1x1 convolution to a quarter of the output channels, channel shuffle, 3x3 depthwise convolution without
    activation, a second grouped 1x1 convolution. With stride 1 it is added to the input; with stride 2 the input is
    averaged over 3x3 and stands before it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, *, stride: int, first_groups: int, shuffle: bool
    ) -> None:
        super().__init__()
        assert stride == 2 or in_channels == out_channels
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        bottleneck = nearest_multiple(out_channels / 4, groups)
        self.stride = stride
        self.reduce = nn.Conv2d(in_channels, bottleneck, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(bottleneck)
        self.shuffle = ChannelShuffle(groups) if shuffle else nn.Identity()
        self.depthwise = nn.Conv2d(bottleneck, bottleneck, 3, stride, padding=1, groups=bottleneck, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck)
        self.expand = nn.Conv2d(bottleneck, branch_channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch_channels)

    def branch(self, x: Tensor) -> Tensor:
        x = self.shuffle(F.relu(self.bn1(self.reduce(x))))
        return self.bn3(self.expand(self.bn2(self.depthwise(x))))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return F.relu(x + self.branch(x))
        return F.relu(torch.cat((F.avg_pool2d(x, 3, stride=2, padding=1), self.branch(x)), dim=1))


class ShuffleNetV1(PooledClassifier):
    """ShuffleNet s x (table 1): a stem, three stages of units, global average pooling and one linear layer.

    Args:
        width: the scale factor s of all channels; the paper has 0.25, 0.5, 1, 1.5 and 2.
        groups: groups of the 1x1 convolutions: 1, 2, 3, 4 or 8.
        shuffle: shuffle the channels between the two 1x1 convolutions; false for the ablation of table 3.
        repeats: units of the three stages, the one with stride 2 included.
        stem: `imagenet` (3x3 convolution and 3x3 max pooling, both with stride 2) or `small`, for small images (the
            convolution with stride 1, no pooling).
        classifier_bias: give the linear layer a bias; null does as the released nets do (0.5 to 2.0 with 3 or 8
            groups have none) and gives one to the others.
    """

    def __init__(
        self,
        width: float = 1.0,
        groups: int = 3,
        *,
        shuffle: bool = True,
        repeats: Sequence[int] = (4, 8, 4),
        stem: str = "imagenet",
        classifier_bias: bool | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if groups not in STAGE2_CHANNELS:
            raise ValueError(
                f"model.groups={groups}: table 1 of the paper has widths for 1, 2, 3, 4 and 8 groups only."
            )
        if width <= 0:
            raise ValueError(f"model.width={width} must be above 0; the paper has 0.25, 0.5, 1.0, 1.5 and 2.0.")
        require_counts("repeats", repeats, 3)
        require_choice("stem", stem, STEMS)
        released_stem = RELEASED_STEMS.get(groups, {}).get(width)
        channels = released_stem or multiple_above(24 * width, groups)
        stage_channels = nearest_multiple(STAGE2_CHANNELS[groups] * width, groups)
        self.stem = make_stem(in_channels, channels, STEMS[stem])
        self.stages = nn.Sequential()
        for index, units in enumerate(repeats):
            # The stem has too few channels to divide them into groups (section 3.2).
            first_groups = 1 if index == 0 else groups
            unit = partial(ShuffleUnit, out_channels=stage_channels, groups=groups, shuffle=shuffle)
            stage = nn.Sequential(unit(channels, stride=2, first_groups=first_groups))
            self.stages.append(
                stage.extend(unit(stage_channels, stride=1, first_groups=groups) for _ in range(units - 1))
            )
            channels, stage_channels = stage_channels, 2 * stage_channels
        bias = released_stem is None if classifier_bias is None else classifier_bias
        self.classifier = nn.Linear(channels, num_classes, bias=bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * stage 2 channels, H/32, W/32)`; H/8, W/8 with the small stem."""
        return self.stages(self.stem(images))
