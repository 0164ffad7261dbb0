"""Spatial pyramid pooling for fully convolutional nets: maxima of several windows beside the map itself.

Huang, Wang, Fu, Yu, Guo, Wang, "DC-SPP-YOLO: Dense Connection and Spatial Pyramid Pooling Based YOLO for Object
Detection" (Information Sciences 2020); windows of 5, 9 and 13 as in the darknet files of YOLOv3-SPP and of CSPNet.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SpatialPyramidBlock(nn.Module):
    """Lay the maxima of square windows around each place before the map: `(B, C, H, W) -> (B, C * (n + 1), H, W)`.

    Args:
        windows: n sides, odd; the largest comes first in the output, as in the authors' files.
    """

    def __init__(self, windows: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in sorted(windows, reverse=True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(pool(x) for pool in self.pools), x], 1)
