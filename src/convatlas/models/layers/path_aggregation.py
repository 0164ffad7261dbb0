"""Path aggregation: through the scales of a backbone to the finest one and back.

Liu, Qi, Qin, Shi, Jia, "Path Aggregation Network for Instance Segmentation" (CVPR 2018), section 3.1, in the form that
the authors of CSPNet published for YOLO (csresnext50-panet-spp.cfg): scales meet by concatenation instead of addition,
convolutions have batch normalisation, and the coarsest scale passes through spatial pyramid pooling.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.layers.conv_norm import conv_norm
from convatlas.models.layers.spatial_pyramid_block import SpatialPyramidBlock


def alternating_convolutions(in_channels: int, channels: int, count: int = 5) -> nn.Sequential:
    """Build YOLOv3's stack: 1x1 convolutions to `channels` and 3x3 ones to twice as many, in turn; `count` is odd."""
    layers = [conv_norm(in_channels, channels, 1)]
    for _ in range(count // 2):
        layers += [conv_norm(channels, 2 * channels, 3), conv_norm(2 * channels, channels, 1)]
    return nn.Sequential(*layers)


class PathAggregation(nn.Module):
    """A way from the coarsest map to the finest, and one back.

    Maps `(B, in_channels[i], H_i, W_i)`, the finest first, each half as large as the one before, become
    `(B, channels[i], H_i, W_i)`.

    Args:
        channels: channels of the new maps; twice as many inside.
        count: convolutions where two scales have met, odd; the authors have 5.
        windows: of the spatial pyramid pooling, in pixels of the coarsest map.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: Sequence[int], count: int = 5, windows: Sequence[int] = (5, 9, 13)
    ) -> None:
        super().__init__()
        finer_pairs = list(pairwise(channels))
        widest = channels[-1]
        self.top = nn.Sequential(
            alternating_convolutions(in_channels[-1], widest, 3),
            SpatialPyramidBlock(windows),
            alternating_convolutions((len(windows) + 1) * widest, widest, 3),
        )
        self.lateral = nn.ModuleList(
            conv_norm(there, here, 1) for there, here in zip(in_channels[:-1], channels[:-1], strict=True)
        )
        self.reduce = nn.ModuleList(conv_norm(coarse, fine, 1) for fine, coarse in finer_pairs)
        self.down = nn.ModuleList(alternating_convolutions(2 * fine, fine, count) for fine, _ in finer_pairs)
        self.halve = nn.ModuleList(conv_norm(fine, coarse, 3, stride=2) for fine, coarse in finer_pairs)
        self.up = nn.ModuleList(alternating_convolutions(2 * coarse, coarse, count) for _, coarse in finer_pairs)
        self.out_channels = tuple(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = [self.top(maps[-1])]
        for level in reversed(range(len(self.lateral))):
            coarse = F.interpolate(self.reduce[level](merged[0]), scale_factor=2.0, mode="nearest")
            merged.insert(0, self.down[level](torch.cat([self.lateral[level](maps[level]), coarse], 1)))
        out = [merged[0]]
        for level, (halve, up) in enumerate(zip(self.halve, self.up, strict=True)):
            out.append(up(torch.cat([halve(out[-1]), merged[level + 1]], 1)))
        return out
