"""Parameter-free shortcuts of residual nets."""

import torch.nn.functional as F
from torch import Tensor, nn


class ZeroPadShortcut(nn.Module):
    """Option A of He et al. (CVPR 2016, section 3.3): every `stride`-th pixel, zero channels behind the others.

    `(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))`; the identity where neither changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def subsample(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]

    def forward(self, x: Tensor) -> Tensor:
        x = self.subsample(x) if self.stride > 1 else x
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x


class AveragePoolShortcut(ZeroPadShortcut):
    """The same with the mean of `stride` x `stride` pixels; at the border of an odd map, of those that exist."""

    def subsample(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride, ceil_mode=True)
