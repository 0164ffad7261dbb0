"""ResNet for small images.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2: a 3x3 convolution, three
stages of n blocks with 16, 32 and 64 filters, global average pooling and one linear layer, 6n+2 layers in all.
Shortcuts carry no parameters (option A): where the shape changes, every second pixel is taken and zero channels are
added. Without shortcuts it is the plain net that the paper compares with. Without batch normalisation and with Xavier's
initialisation it is what came before: a net whose gradients shrink from layer to layer.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_choice, require_positive
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.shortcuts import ZeroPadShortcut

SHORTCUTS = ("identity", "projection", "none")
INITIALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "he": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "xavier": nn.init.xavier_normal_,
}


def convolution(in_channels: int, out_channels: int, stride: int, batch_norm: bool) -> nn.Conv2d:
    """Build a 3x3 convolution; it has biases where no batch normalisation follows."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=not batch_norm)


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

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, shortcut: str = "identity", batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, out_channels, stride, batch_norm)
        self.bn1 = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.conv2 = convolution(out_channels, out_channels, 1, batch_norm)
        self.bn2 = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.shortcut = make_shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out if self.shortcut is None else out + self.shortcut(x))


class ResNetCifar(PooledClassifier):
    """ResNet of `depth` = 6n+2 layers.

    Args:
        depth: number of layers with weights, 6n+2.
        width: filters of the first stage; the next two have twice and four times as many.
        shortcut: `identity` (option A, the paper's for CIFAR), `projection` (option B), or `none`: the plain net.
        batch_norm: normalise after each convolution, as the paper does.
        initialisation: `he`, the paper's, or `xavier` (Glorot and Bengio 2010), which does not allow for ReLU.
    """

    def __init__(
        self,
        depth: int = 20,
        *,
        width: int = 16,
        shortcut: str = "identity",
        batch_norm: bool = True,
        initialisation: str = "he",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        blocks = blocks_for_depth(depth, step=6, others=2)
        require_positive("width", width)
        require_choice("shortcut", shortcut, SHORTCUTS)
        require_choice("initialisation", initialisation, INITIALISATIONS)
        norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.stem = nn.Sequential(convolution(in_channels, width, 1, batch_norm), norm, nn.ReLU())

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, out_channels, stride, shortcut, batch_norm)
            others = (BasicBlock(out_channels, out_channels, 1, shortcut, batch_norm) for _ in range(blocks - 1))
            return nn.Sequential(first, *others)

        self.stage1 = stage(width, width, 1)
        self.stage2 = stage(width, 2 * width, 2)
        self.stage3 = stage(2 * width, 4 * width, 2)
        self.classifier = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                INITIALISATIONS[initialisation](module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * width, H/4, W/4)`."""
        return self.stage3(self.stage2(self.stage1(self.stem(images))))
