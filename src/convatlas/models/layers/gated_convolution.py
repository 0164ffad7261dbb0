"""Gated convolution: a shape stream that lets pass what a deeper layer of the net points at.

Takikawa, Acuna, Jampani, Fidler, "Gated-SCNN: Gated Shape CNNs for Semantic Segmentation" (ICCV 2019), section 3.1;
SAUNet (Sun et al. 2020) takes it over.
"""

import torch
from torch import Tensor, nn


class GatedConvolution(nn.Module):
    """`conv1x1(s * (1 + gate(s, t)))` for a stream s and one channel t of the net; channels as in the stream.

    The gate is `sigmoid(BN(conv1x1(ReLU(conv1x1(BN([s, t]))))))`, one value a pixel. Closed everywhere, it leaves a
    plain 1x1 convolution without bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        both = channels + 1
        self.gate = nn.Sequential(
            nn.BatchNorm2d(both),
            nn.Conv2d(both, both, 1),
            nn.ReLU(),
            nn.Conv2d(both, 1, 1),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )
        self.convolution = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, stream: Tensor, texture: Tensor) -> Tensor:
        """`(B, channels, H, W)` and `(B, 1, H, W) -> (B, channels, H, W)`."""
        gate = self.gate(torch.cat([stream, texture], dim=1))
        return self.convolution(stream * (1 + gate))
