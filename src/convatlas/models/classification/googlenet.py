"""GoogLeNet, the first Inception net, with its auxiliary classifiers.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich, "Going Deeper with Convolutions" (CVPR 2015),
section 5, table 1 and figure 3. No batch normalisation, biases everywhere, real 5x5 convolutions: torchvision's net of
this name has neither of the three, so it is written here.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import (
    require_choice,
    require_exact_size,
    require_image_size,
    require_probability,
    require_width,
)
from convatlas.models.interfaces import AuxiliaryOutput
from convatlas.models.layers.initialisation import initialise
from convatlas.models.layers.normalisation import LocalResponseNorm

INITIALISATIONS = ("xavier", "he")


class Widths(NamedTuple):
    """A row of table 1: the maps of an Inception module's branches, and of the reductions before two of them."""

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pooled: int

    @property
    def out_channels(self) -> int:
        return self.one + self.three + self.five + self.pooled


TABLE_1 = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


def scaled(maps: int, width: float) -> int:
    """Return `maps` at this width, at least one."""
    return max(1, round(maps * width))


class ImageNetStem(nn.Module):
    """The layers in front of 3a: `(B, C, H, W) -> (B, 192 * width, H/8, W/8)`."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        n64, n192 = scaled(64, width), scaled(192, width)
        self.conv1 = nn.Conv2d(in_channels, n64, 7, stride=2, padding=3)
        self.reduce = nn.Conv2d(n64, n64, 1)
        self.conv2 = nn.Conv2d(n64, n192, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = LocalResponseNorm()

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.pool(F.relu(self.conv1(images))))
        x = F.relu(self.conv2(F.relu(self.reduce(x))))
        return self.pool(self.norm(x))


class SmallStem(nn.Module):
    """What stands in its place for small images: `(B, C, H, W) -> (B, 192 * width, H/2, W/2)`."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, scaled(64, width), 3, padding=1)
        self.conv2 = nn.Conv2d(scaled(64, width), scaled(192, width), 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm = LocalResponseNorm()

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(images)))
        return self.norm(F.relu(self.conv2(x)))


STEMS = {"imagenet": ImageNetStem, "small": SmallStem}


class Inception(nn.Module):
    """Kernels of several sizes side by side (figure 2b); `(B, in, H, W) -> (B, widths.out_channels, H, W)`.

    1x1 convolutions make the 3x3 and 5x5 ones cheap by reducing the maps they see.
    """

    def __init__(self, in_channels: int, widths: Widths) -> None:
        super().__init__()
        self.one = nn.Conv2d(in_channels, widths.one, 1)
        self.reduce_three = nn.Conv2d(in_channels, widths.reduce_three, 1)
        self.three = nn.Conv2d(widths.reduce_three, widths.three, 3, padding=1)
        self.reduce_five = nn.Conv2d(in_channels, widths.reduce_five, 1)
        self.five = nn.Conv2d(widths.reduce_five, widths.five, 5, padding=2)
        self.pooled = nn.Conv2d(in_channels, widths.pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.three(F.relu(self.reduce_three(x)))
        five = self.five(F.relu(self.reduce_five(x)))
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return F.relu(torch.cat([self.one(x), three, five, pooled], dim=1))


class OneKernel(nn.Sequential):
    """A 3x3 kernel alone, with as many maps and multiply-adds as the Inception module of these widths; for comparison.

    A 1x1 convolution reduces the maps that it sees, so far that the costs agree.
    """

    def __init__(self, in_channels: int, widths: Widths) -> None:
        reductions = in_channels * (widths.one + widths.reduce_three + widths.reduce_five + widths.pooled)
        cost = reductions + 9 * widths.reduce_three * widths.three + 25 * widths.reduce_five * widths.five
        reduced = max(1, round(cost / (in_channels + 9 * widths.out_channels)))
        super().__init__(
            nn.Conv2d(in_channels, reduced, 1),
            nn.ReLU(),
            nn.Conv2d(reduced, widths.out_channels, 3, padding=1),
            nn.ReLU(),
        )


class AuxiliaryClassifier(nn.Module):
    """A classifier on inner maps, used in training alone (section 5); `(B, in, side, side) -> (B, num_classes)`.

    Args:
        in_channels: maps it looks at: 512 after 4a, 528 after 4d.
        side: pixels a side of these maps, 14 for images of 224 pixels.
        width: factor on its 128 maps and 1024 units.
    """

    def __init__(self, in_channels: int, side: int, width: float, num_classes: int) -> None:
        super().__init__()
        maps, hidden = scaled(128, width), scaled(1024, width)
        pooled_side = (side - 5) // 3 + 1
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv = nn.Conv2d(in_channels, maps, 1)
        self.fc = nn.Linear(maps * pooled_side**2, hidden)
        self.dropout = nn.Dropout(0.7)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(self.pool(x)))
        x = F.relu(self.fc(x.flatten(1)))
        return self.classifier(self.dropout(x))


class GoogLeNet(nn.Module):
    """GoogLeNet: `(B, C, H, W) -> (B, num_classes)`, in training with auxiliary classifiers a `AuxiliaryOutput`.

    Args:
        auxiliary: classifiers on 4a and 4d in training; `auxiliary_loss_weights` are the paper's 0.3.
        parallel: false has a 3x3 kernel alone in the place of each Inception module, at the same cost.
        image_size: side of the images in pixels, to which the auxiliary classifiers are bound.
        stem: `imagenet` (224 pixels become 28), or `small`: two 3x3 convolutions and one pooling (32 become 16).
        width: factor on the maps of all convolutions and on the hidden units of the auxiliary classifiers.
        initialisation: `xavier` (Glorot and Bengio 2010; Caffe's filler of that name divides by the inputs alone) with
            biases of 0.2 as in Caffe's replica, or `he`; the paper does not say.
    """

    def __init__(
        self,
        *,
        auxiliary: bool = True,
        parallel: bool = True,
        image_size: int = 224,
        stem: str = "imagenet",
        width: float = 1.0,
        dropout: float = 0.4,
        initialisation: str = "xavier",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("stem", stem, STEMS)
        require_choice("initialisation", initialisation, INITIALISATIONS)
        require_width(width)
        require_probability("dropout", dropout)
        widths = {name: Widths(*(scaled(maps, width) for maps in row)) for name, row in TABLE_1.items()}
        channels = scaled(192, width)
        self.image_size = image_size
        self.smallest_image = 31 if stem == "imagenet" else 8
        self.stem = STEMS[stem](in_channels, width)
        for name, row in widths.items():
            self.add_module(f"inception{name}", (Inception if parallel else OneKernel)(channels, row))
            channels = row.out_channels
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        self.auxiliary = nn.ModuleList()
        self.auxiliary_loss_weights: tuple[float, ...] = ()
        if auxiliary:
            side = side_of_4a(image_size, stem)
            for row in (widths["4a"], widths["4d"]):
                self.auxiliary.append(AuxiliaryClassifier(row.out_channels, side, width, num_classes))
            self.auxiliary_loss_weights = (0.3, 0.3)
        hidden = 0.2 if initialisation == "xavier" else 0.0
        initialise(self, initialisation, lambda name: 0.0 if name.endswith("classifier.bias") else hidden)

    def _inner_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs of 4a and 4d, which the auxiliary classifiers see, and of 5b."""
        require_image_size(images, self.smallest_image, "GoogLeNet with this stem")
        x = self.pool(self._modules_of(self.stem(images), "3a", "3b"))
        after_4a = self._modules_of(x, "4a")
        after_4d = self._modules_of(after_4a, "4b", "4c", "4d")
        x = self.pool(self._modules_of(after_4d, "4e"))
        return after_4a, after_4d, self._modules_of(x, "5a", "5b")

    def _modules_of(self, x: Tensor, *rows: str) -> Tensor:
        """Compute the Inception modules of some rows of table 1."""
        for row in rows:
            x = self.get_submodule(f"inception{row}")(x)
        return x

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 1024 * width, H', W')`, 7x7 maps for 224 pixels."""
        return self._inner_maps(images)[-1]

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        *inner, features = self._inner_maps(images)
        logits = self.classifier(self.dropout(features.mean((2, 3))))
        if not (self.training and self.auxiliary):
            return logits
        require_exact_size(images, self.image_size)
        pairs = zip(self.auxiliary, inner, strict=True)
        return AuxiliaryOutput(logits, tuple(classifier(maps) for classifier, maps in pairs))


def side_of_4a(image_size: int, stem: str) -> int:
    """Return the pixels a side of the maps that the auxiliary classifiers see."""
    # The first convolution halves the side rounding up, each pooling rounding down.
    side = (image_size + 1) // 2 // 2**3 if stem == "imagenet" else image_size // 2**2
    if side < 5:
        smallest = 79 if stem == "imagenet" else 20
        raise ValueError(
            f"model.image_size={image_size} leaves {side}x{side} pixels for the auxiliary classifiers, which need 5x5; "
            f"take {smallest} and more, or model.auxiliary=false."
        )
    return side
