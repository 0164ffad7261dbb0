"""Channel shuffle: lets the next grouped convolution see channels of every group.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices" (CVPR
2018), section 3.1, figure 1.
"""

from torch import Tensor, nn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Write the channels as a `groups` x n table, row by row, and read it column by column.

    Channel `i * n + j`, the j-th of group i, moves to `j * groups + i`; nothing is computed.

    Args:
        x: `(B, groups * n, H, W)`.
        groups: groups of the convolution that made `x`; with one group nothing moves.

    Raises:
        ValueError: the channels do not divide by `groups`.
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
