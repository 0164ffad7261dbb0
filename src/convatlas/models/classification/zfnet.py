"""ZFNet: AlexNet improved by looking at what its features see.

Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), figure 3; variant (b) is model (b)
of section 5.1 with 512, 1024 and 512 maps in the last three convolutions. Against AlexNet: a 7x7 first convolution
with stride 2, a second one with stride 2, no groups.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_exact_size, require_probability, require_width
from convatlas.models.layers.initialisation import initialise
from convatlas.models.layers.normalisation import LocalContrastNorm, LocalResponseNorm, WithinChannelResponseNorm

CHANNELS = {"a": (96, 256, 384, 384, 256), "b": (96, 256, 512, 1024, 512)}
HIDDEN = 4096
STEMS = {"imagenet": (2, 1, 2, 0), "small": (1, 3, 1, 2)}
"""Stride and padding of the 7x7 first convolution, then of the 5x5 second one."""
NORMS = {
    "response": LocalResponseNorm,
    "within_channel": WithinChannelResponseNorm,
    "contrast": LocalContrastNorm,
    "none": nn.Identity,
}
INITIALISATIONS = ("paper", "he")


class ZFNet(nn.Module):
    """ZFNet: `(B, C, image_size, image_size) -> (B, num_classes)`.

    Args:
        variant: maps of the last three convolutions: `a` 384-384-256, `b` 512-1024-512.
        contrast_normalisation: after each of the first two poolings. The paper refers to two others for it:
            `response` is AlexNet's, across neighbouring maps; `contrast` Jarrett's, over pixels and maps.
            `within_channel` is what the released SPP-net has, over pixels of one map; `none` leaves it out.
        stem: strides 2 and 2 of the first two convolutions (`imagenet`), or 1 and 1 for small images (`small`).
        initialisation: `paper` (std 0.01, biases 0), or `he` for nets much narrower than the paper's, through
            which signals of that size do not pass.
    """

    def __init__(
        self,
        *,
        variant: str = "a",
        contrast_normalisation: str = "response",
        image_size: int = 224,
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.5,
        initialisation: str = "paper",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("variant", variant, CHANNELS)
        require_choice("contrast_normalisation", contrast_normalisation, NORMS)
        require_choice("stem", stem, STEMS)
        require_choice("initialisation", initialisation, INITIALISATIONS)
        require_width(width)
        require_probability("dropout", dropout)
        channels = [max(1, round(maps * width)) for maps in CHANNELS[variant]]
        hidden = max(1, round(HIDDEN * width))
        self.image_size = image_size
        convolutions = five_convolutions(in_channels, channels, stem)
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = convolutions
        self.fc6 = nn.Linear(channels[-1] * last_map_side(image_size, stem) ** 2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.norm = NORMS[contrast_normalisation]()
        # Rounding up keeps the maps at the figure's 55, 13 and 6 pixels.
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        initialise(self, initialisation)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, image_size, image_size) -> (B, 256 * width, H', W')`, 6x6 maps for 224 pixels."""
        require_exact_size(images, self.image_size)
        x = self.norm(self.pool(F.relu(self.conv1(images))))
        x = self.norm(self.pool(F.relu(self.conv2(x))))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        return self.pool(F.relu(self.conv5(x)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.forward_features(images).flatten(1)
        x = self.dropout(F.relu(self.fc6(x)))
        x = self.dropout(F.relu(self.fc7(x)))
        return self.fc8(x)


def five_convolutions(in_channels: int, channels: Sequence[int], stem: str) -> list[nn.Conv2d]:
    """Build the five convolutions; SPP-net has them too."""
    stride1, padding1, stride2, padding2 = STEMS[stem]
    sizes = [(7, stride1, padding1), (5, stride2, padding2), *[(3, 1, 1)] * 3]
    return [nn.Conv2d(i, o, *size) for (i, o), size in zip(pairwise([in_channels, *channels]), sizes, strict=True)]


def last_map_side(image_size: int, stem: str) -> int:
    """Return the side of the maps after the third pooling, in pixels."""
    stride1, padding1, stride2, padding2 = STEMS[stem]
    side = pooled((image_size + 2 * padding1 - 7) // stride1 + 1)
    side = pooled((side + 2 * padding2 - 5) // stride2 + 1)
    side = pooled(side)
    if side < 1:
        raise ValueError(
            f"model.image_size={image_size} leaves no pixel after the last pooling; model.stem=imagenet takes 47 and "
            "more, model.stem=small 8 and more."
        )
    return side


def pooled(side: int) -> int:
    """Return the side after pooling 3x3 windows with stride 2, the last one allowed to stand over the border."""
    return -(-(side - 3) // 2) + 1
