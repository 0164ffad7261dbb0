"""ResNet for small images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: a 3x3 convolution, three
stages of n blocks with 16, 32 and 64 filters, global average pooling and one linear layer, 6n+2 layers in all.
Shortcuts carry no parameters (option A): where the shape changes, every second pixel is taken and zero channels are
added. Without shortcuts it is the plain net that the paper compares with.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_positive
from convatlas.models.layers.shortcuts import ZeroPadShortcut

__all__ = ["BasicBlock", "ResNetCifar"]

SHORTCUTS = ("identity", "projection", "none")


def make_shortcut(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Build the shortcut of one block: option A, option B (a 1x1 convolution where the shape changes), or none."""
    if kind == "none":
        return None
    if kind == "identity" or (stride == 1 and in_channels == out_channels):
        return ZeroPadShortcut(in_channels, out_channels, stride)
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `(B, in, H, W) -> (B, out, H/stride, W/stride)`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: str = "identity") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions; the last ReLU comes after the sum."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class ResNetCifar(nn.Module):
    """ResNet of `depth` = 6n+2 layers.

    Args:
        depth: number of layers with weights, 6n+2.
        width: filters of the first stage; the next two have twice and four times as many.
        shortcut: `identity` (option A, the paper's for CIFAR), `projection` (option B), or `none`: the plain net.
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: `depth` is not 6n+2, `width` is less than 1, or there is no such shortcut.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        shortcut: str = "identity",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks = blocks_for_depth(depth, step=6, others=2)
        require_positive("width", width)
        if shortcut not in SHORTCUTS:
            raise ValueError(f"model.shortcut={shortcut} is not known; choose one of {', '.join(SHORTCUTS)}.")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = self._stage(width, width, blocks, 1, shortcut)
        self.stage2 = self._stage(width, 2 * width, blocks, 2, shortcut)
        self.stage3 = self._stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.classifier = nn.Linear(4 * width, num_classes)
        self._initialise()

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(in_channels, out_channels, stride, shortcut)
        others = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
        return nn.Sequential(first, *others)

    def _initialise(self) -> None:
        """He initialisation, as the paper's reference [13] has it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * width, H/4, W/4)`."""
        return self.stage3(self.stage2(self.stage1(self.stem(images))))

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes)` logits."""
        return self.classifier(self.forward_features(images).mean((2, 3)))
