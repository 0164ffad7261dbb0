"""ShuffleNet V2: half of the channels pass a unit untouched, then all are shuffled.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (ECCV 2018), section
3. As in the authors' released nets a unit of stride 2 keeps the input's channels in its short branch and makes the
others in the long one (torchvision gives each branch half), and the classifier has no bias; this gives the paper's
multiply-adds.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_choice
from convatlas.models.layers.shuffle import channel_shuffle

CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
"""Table 5: output channels of stages 2, 3, 4 and of the last 1x1 convolution, by width."""


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU; `(B, in, H, W) -> (B, out, H, W)`."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())


def depthwise(channels: int, stride: int) -> nn.Sequential:
    """3x3 depthwise convolution and batch norm, without activation; `(B, C, H, W) -> (B, C, H/stride, W/stride)`."""
    convolution = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class ShuffleUnitV2(nn.Module):
    """Figure 3 (c): split, convolve one half, join, shuffle; `(B, C, H, W) -> (B, C, H, W)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        assert channels % 2 == 0
        half = channels // 2
        self.branch = nn.Sequential(pointwise(half, half), depthwise(half, 1), pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        untouched, convolved = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((untouched, self.branch(convolved)), dim=1), 2)


class DownsamplingUnit(nn.Module):
    """Figure 3 (d): both branches see all channels; `(B, in, H, W) -> (B, out, H/2, W/2)`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        middle = out_channels // 2
        self.short = nn.Sequential(depthwise(in_channels, 2), pointwise(in_channels, in_channels))
        self.long = nn.Sequential(
            pointwise(in_channels, middle), depthwise(middle, 2), pointwise(middle, out_channels - in_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(torch.cat((self.short(x), self.long(x)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2 of any width (table 5): stem, three stages, a 1x1 convolution, global pooling, one linear layer.

    Args:
        stage_channels: output channels of stages 2, 3 and 4; even, and growing from the stem's.
        head_channels: output channels of the last 1x1 convolution.
        repeats: units of the three stages, the one with stride 2 included.
        stem: `imagenet` (3x3 convolution and 3x3 max pooling, both with stride 2) or `small`, for small images (the
            convolution with stride 1, no pooling).
        stem_channels: output channels of the stem.
        classifier_bias: give the linear layer a bias.
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
        if len(repeats) != 3 or min(repeats) < 1:
            raise ValueError(f"model.repeats={list(repeats)} must be three numbers of units, each at least 1.")
        self.stem = self._stem(stem, in_channels, stem_channels)
        self.stages = nn.Sequential()
        for units, (before, after) in zip(repeats, pairwise(widths), strict=True):
            stage = nn.Sequential(DownsamplingUnit(before, after))
            stage.extend(ShuffleUnitV2(after) for _ in range(units - 1))
            self.stages.append(stage)
        self.head = pointwise(widths[-1], head_channels)
        self.classifier = nn.Linear(head_channels, num_classes, bias=classifier_bias)

    @staticmethod
    def _stem(kind: str, in_channels: int, channels: int) -> nn.Sequential:
        require_choice("stem", kind, ("imagenet", "small"))
        stride = 2 if kind == "imagenet" else 1
        convolution = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        stem = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
        return stem.append(nn.MaxPool2d(3, stride=2, padding=1)) if kind == "imagenet" else stem

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, head_channels, H/32, W/32)`; H/8, W/8 with the small stem."""
        return self.head(self.stages(self.stem(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.forward_features(images).mean((2, 3)))


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
