"""Channel shuffle, which lets the next convolution see channels of every group, and the units that are made with it.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR
2018), section 3.1, figure 1; the units are those of Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for
Efficient CNN Architecture Design" (ECCV 2018), section 3, figure 3.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_counts
from convatlas.models.layers.conv_norm import ConvNormAct


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Write the channels as a `groups` x n table, row by row, and read it column by column.

    Channel `i * n + j`, the j-th of group i, moves to `j * groups + i`; nothing is computed.

    Args:
        groups: groups of the convolution that made `x`; with one group nothing moves.
    """
    if x.shape[1] % groups:
        raise ValueError(f"groups={groups} does not divide the {x.shape[1]} channels; take a divisor of them.")
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ChannelShuffle(nn.Module):
    """`channel_shuffle` as a layer; `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def extra_repr(self) -> str:
        return f"groups={self.groups}"

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, self.groups)


class ShuffleUnit(nn.Module):
    """Figure 3 (c): leave one half of the channels as it is, convolve the other, join, shuffle; the shape stays.

    Args:
        channels: even.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(ConvNormAct(half, half), depthwise(half, kernel), ConvNormAct(half, half))

    def forward(self, x: Tensor) -> Tensor:
        untouched, convolved = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((untouched, self.branch(convolved)), dim=1), 2)


class DownsamplingUnit(nn.Module):
    """Figure 3 (d): both branches see all channels; `(B, in, H, W) -> (B, out, H/2, W/2)`.

    Args:
        out_channels: channels that go out, even.
        equal: both branches give half of the channels; otherwise the short one keeps the input's, as in the authors'
            released nets.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, equal: bool = False) -> None:
        super().__init__()
        half = out_channels // 2
        kept = half if equal else in_channels
        self.short = nn.Sequential(depthwise(in_channels, kernel, 2), ConvNormAct(in_channels, kept))
        self.long = nn.Sequential(
            ConvNormAct(in_channels, half), depthwise(half, kernel, 2), ConvNormAct(half, out_channels - kept)
        )

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(torch.cat((self.short(x), self.long(x)), dim=1), 2)


def depthwise(channels: int, kernel: int, stride: int = 1) -> ConvNormAct:
    """Build a depthwise convolution with batch norm and without activation."""
    return ConvNormAct(channels, channels, kernel, stride, groups=channels, activation=None)


def shuffle_stages(
    widths: Sequence[int], repeats: Sequence[int], kernel: int = 3, equal: bool = False
) -> nn.Sequential:
    """Build three stages, each of one `DownsamplingUnit` and `ShuffleUnit`s.

    Args:
        repeats: units of each stage.
    """
    require_counts("repeats", repeats, 3)
    stages = nn.Sequential()
    for units, (before, after) in zip(repeats, pairwise(widths), strict=True):
        stage = nn.Sequential(DownsamplingUnit(before, after, kernel, equal))
        stages.append(stage.extend(ShuffleUnit(after, kernel) for _ in range(units - 1)))
    return stages


STEMS = {"imagenet": 4, "small": 1}
"""Stride of the stem by its name."""


def stem(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """Build a 3x3 convolution, of stride 2 but for `stride` 1, and for stride 4 a 3x3 maximum pooling behind it."""
    layers = nn.Sequential(*ConvNormAct(in_channels, channels, 3, min(stride, 2)))
    return layers.append(nn.MaxPool2d(3, stride=2, padding=1)) if stride == 4 else layers
