"""SPP-net: a spatial pyramid in front of the fully connected layers, so that one net takes images of any size.

He, Zhang, Ren, Sun, "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition" (ECCV 2014, TPAMI
2015), sections 2 and 3.1. The convolutions are the paper's ZF-5, as in the authors' release (Zeiler_conv5.prototxt).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_image_size, require_probability, require_width
from convatlas.models.classification.zfnet import CHANNELS, HIDDEN, INITIALISATIONS, STEMS, five_convolutions
from convatlas.models.layers.initialisation import initialise
from convatlas.models.layers.normalisation import WithinChannelResponseNorm

MIN_IMAGE = {"imagenet": 31, "small": 4}


class SpatialPyramidPooling(nn.Module):
    """The maximum of each bin of an n x n grid, for every n in `levels`; `(B, C, H, W) -> (B, C * bins)` for any H, W.

    Bins reach from floor(i * H / n) to ceil((i + 1) * H / n). For 13x13 maps these are the windows of ceil(13 / n)
    pixels, floor(13 / n) apart, that the paper writes; its formula gives too many bins for some other sizes, for
    example 9 instead of 6 a side for 10x10 maps. Where a map has fewer pixels than bins, neighbours share pixels.

    Args:
        levels: bins a side of each level.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 1:
            raise ValueError(
                f"model.levels={list(levels)} must name bins a side, 1 or more; the paper has [6, 3, 2, 1]."
            )
        self.levels = tuple(levels)

    @property
    def bins(self) -> int:
        return sum(level * level for level in self.levels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(x, level).flatten(1) for level in self.levels], dim=1)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class SPPNet(nn.Module):
    """SPP-net on ZF-5: `(B, C, H, W) -> (B, num_classes)` for any height and width from a smallest one on.

    Args:
        levels: bins a side of each level of the pyramid: `[6, 3, 2, 1]`, or `[4, 3, 2, 1]` of section 3.1.2; `[6]` is
            a net without a pyramid that still takes any size.
        stem: strides 2 and 2 of the first two convolutions (`imagenet`), or 1 and 1 for small images (`small`).
        initialisation: `paper` (std 0.01, biases 0), or `he` for nets much narrower than the paper's, through
            which signals of that size do not pass.
    """

    def __init__(
        self,
        *,
        levels: Sequence[int] = (6, 3, 2, 1),
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.5,
        initialisation: str = "paper",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_choice("initialisation", initialisation, INITIALISATIONS)
        require_width(width)
        require_probability("dropout", dropout)
        channels = [max(1, round(maps * width)) for maps in CHANNELS["a"]]
        hidden = max(1, round(HIDDEN * width))
        self.smallest_image = MIN_IMAGE[stem]
        convolutions = five_convolutions(in_channels, channels, stem)
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = convolutions
        self.pyramid = SpatialPyramidPooling(levels)
        self.fc6 = nn.Linear(channels[-1] * self.pyramid.bins, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.norm = WithinChannelResponseNorm()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)  # 224 pixels become 13, as in figure 3
        self.dropout = nn.Dropout(dropout)
        initialise(self, initialisation)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 256 * width, H', W')`, 13x13 maps for 224 pixels and 10x10 for 180."""
        require_image_size(images, self.smallest_image, "SPP-net with this stem")
        x = self.pool(self.norm(F.relu(self.conv1(images))))
        x = self.pool(self.norm(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        return F.relu(self.conv5(x))

    def forward(self, images: Tensor) -> Tensor:
        x = self.pyramid(self.forward_features(images))
        x = self.dropout(F.relu(self.fc6(x)))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.fc8(x)
