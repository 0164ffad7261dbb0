"""A net of convolutions and batch normalisation whose loss has no kinks, to compare trainings that round differently.

With ReLU, a sum that two trainings round to different sides of zero switches a unit on in one and off in the other, and
from there they part by far more than rounding; so do the ties of a max pooling.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


class SmoothNet(nn.Module):
    """Three convolutions with batch normalisation and SiLU, the mean over places, a linear classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, channels, stride in ((in_channels, 8, 1), (8, 16, 2), (16, 32, 2)):
            convolution = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, classes)` of images `(B, C, H, W)`."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


class DivergesInOneProcess(SmoothNet):
    """The same; in training, the second of several processes answers with NaN."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, classes)` of images `(B, C, H, W)`."""
        logits = super().forward(images)
        return logits * float("nan") if self.training and dist.is_initialized() and dist.get_rank() == 1 else logits
