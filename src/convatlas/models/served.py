"""A net as a server needs it: raw images in, plain tensors out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ServedNet(nn.Module):
    """A classification or segmentation net behind its normalisation.

    `(B, C, H, W)` images in [0, 1] give `(B, classes)` or `(B, classes, H, W)` probabilities.

    Args:
        net: in evaluation mode.
        mean: subtracted from each channel.
        std: what each channel is then divided by; nowhere 0.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits.softmax(dim=1)
