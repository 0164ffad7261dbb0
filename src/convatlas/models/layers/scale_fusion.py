"""Exact and global fusion of the scales of a backbone: a reconstruction.

Wang et al., "CSPNet" (CVPR Workshops 2020), section 3.3 and figure 6: an object belongs to one anchor, an anchor's size
to one scale s, and what is seen of the object lies between the scales s - 1 and s + 1. So the Exact Fusion Model (EFM)
joins these three at every scale, and a Maxout keeps the joined maps small. The Global Fusion Model, with which the
paper compares it, joins all scales everywhere. Nothing of either was published but that prose and a drawing; the first
author said in public that the Maxout comes before the concatenation. Reconstructed here: the 1x1 convolutions that the
Maxout takes its maximum of (Goodfellow et al., "Maxout Networks", ICML 2013), maximum pooling towards coarser scales,
nearest neighbours towards finer ones, and YOLOv3's convolutions behind the concatenation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.layers.conv_norm import conv_norm
from convatlas.models.layers.path_aggregation import alternating_convolutions


class Maxout(nn.Module):
    """The maximum of `pieces` linear 1x1 convolutions with BN: `(B, in, H, W) -> (B, out, H, W)`.

    Channels c, c + out, c + 2 * out, ... of the convolution compete, as in darknet's maximum over channels.
    """

    def __init__(self, in_channels: int, out_channels: int, pieces: int) -> None:
        super().__init__()
        self.pieces = conv_norm(in_channels, pieces * out_channels, 1, activation=None)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.pieces(x).unflatten(1, (-1, self.out_channels)).amax(1)


def resize(x: Tensor, coarser: int) -> Tensor:
    """Bring a map to the scale `coarser` steps coarser (finer if negative); a step halves height and width."""
    if coarser > 0:
        return F.max_pool2d(x, 2**coarser)
    return F.interpolate(x, scale_factor=2.0**-coarser, mode="nearest") if coarser else x


class ScaleFusion(nn.Module):
    """Join at every scale the maps of the scales that are near enough.

    Maps `(B, in_channels[i], H_i, W_i)`, the finest first, each half as large as the one before, become
    `(B, channels[i], H_i, W_i)`.

    Args:
        channels: channels of each scale behind the Maxout, and of each new map.
        reach: farthest scale that is joined, counted in scales.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: Sequence[int], reach: int, count: int = 3, pieces: int = 2
    ) -> None:
        super().__init__()
        scales = range(len(channels))
        self.sources = [[other for other in scales if abs(other - scale) <= reach] for scale in scales]
        self.compress = nn.ModuleList(
            Maxout(there, here, pieces) for there, here in zip(in_channels, channels, strict=True)
        )
        self.join = nn.ModuleList(
            alternating_convolutions(sum(channels[source] for source in sources), width, count)
            for sources, width in zip(self.sources, channels, strict=True)
        )
        self.out_channels = tuple(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        small = [compress(each) for compress, each in zip(self.compress, maps, strict=True)]
        return [
            join(torch.cat([resize(small[source], scale - source) for source in sources], 1))
            for scale, (join, sources) in enumerate(zip(self.join, self.sources, strict=True))
        ]


def exact_fusion(in_channels: Sequence[int], channels: Sequence[int], count: int = 3) -> ScaleFusion:
    """Build the Exact Fusion Model: each scale with its two neighbours."""
    return ScaleFusion(in_channels, channels, reach=1, count=count)


def global_fusion(in_channels: Sequence[int], channels: Sequence[int], count: int = 3) -> ScaleFusion:
    """Build the Global Fusion Model: each scale with all others."""
    return ScaleFusion(in_channels, channels, reach=len(channels) - 1, count=count)
