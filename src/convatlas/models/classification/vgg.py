"""VGG: depth from 3x3 convolutions alone, in the six configurations of the paper.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015), table 1.
Layers are numbered as in torchvision, so that its weights load into A, B, D and E, with and without batch norm.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from convatlas.models.checks import (
    require_choice,
    require_exact_size,
    require_image_size,
    require_probability,
    require_width,
)
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.normalisation import LocalResponseNorm

CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
"""Table 1: the kernel sizes of the convolutions in each of the five blocks."""
CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096


class VGG(nn.Module):
    """VGG: `(B, C, image_size, image_size) -> (B, num_classes)`.

    Args:
        configuration: column of table 1: `A`, `A-LRN`, `B`, `C`, `D` (VGG-16) or `E` (VGG-19).
        large_filters: each block is one convolution with the receptive field of its stack: 5x5 for two of 3x3, 7x7 for
            three (section 2.3).
        batch_norm: normalise each batch after every convolution, which the paper does not.
        image_size: side of the images in pixels, 32 or more; the first fully connected layer fixes it.
    """

    def __init__(
        self,
        *,
        configuration: str = "D",
        large_filters: bool = False,
        batch_norm: bool = False,
        image_size: int = 224,
        width: float = 1.0,
        dropout: float = 0.5,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("configuration", configuration, CONFIGURATIONS)
        require_width(width)
        require_probability("dropout", dropout)
        if image_size < 32:
            raise ValueError(f"model.image_size={image_size} is halved five times; it must be 32 or more.")
        self.image_size = image_size
        channels = [max(1, round(maps * width)) for maps in CHANNELS]
        hidden = max(1, round(HIDDEN * width))
        blocks = CONFIGURATIONS[configuration]
        if large_filters:
            blocks = tuple((1 + sum(kernel - 1 for kernel in kernels),) for kernels in blocks)
        self.features = convolutions(blocks, in_channels, channels, batch_norm, configuration == "A-LRN")
        self.classifier = nn.Sequential(
            nn.Linear(channels[-1] * (image_size // 32) ** 2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        initialise_he(
            self, "fan_in", (nn.Conv2d, nn.Linear)
        )  # trains all depths at once; the paper starts deep nets from a trained A

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 512 * width, H/32, W/32)`, for images of any size from 32 pixels on."""
        require_image_size(images, 32, "VGG")
        return self.features(images)

    def forward(self, images: Tensor) -> Tensor:
        require_exact_size(images, self.image_size)
        return self.classifier(self.forward_features(images).flatten(1))


def convolutions(
    blocks: Sequence[Sequence[int]], in_channels: int, channels: list[int], batch_norm: bool, response_norm: bool
) -> nn.Sequential:
    """Build the five blocks from their kernel sizes, each ending in 2x2 max pooling."""
    layers: list[nn.Module] = []
    for block, (out_channels, kernels) in enumerate(zip(channels, blocks, strict=True)):
        for kernel in kernels:
            layers.append(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU())
            if response_norm and block == 0:
                layers.append(LocalResponseNorm())
            in_channels = out_channels
        layers.append(nn.MaxPool2d(2, stride=2))
    return nn.Sequential(*layers)
