"""Network in Network: a small multilayer perceptron slides over the image instead of a linear filter.

Lin, Chen, Yan, "Network In Network" (ICLR 2014). The paper gives the structure (section 3.3, figure 2) and leaves the
sizes to the authors' release for CIFAR-10, from which they are taken here.
"""

from torch import Tensor, nn

from convatlas.models.checks import (
    require_choice,
    require_exact_size,
    require_image_size,
    require_probability,
    require_width,
)
from convatlas.models.layers.initialisation import initialise_he

HEADS = ("global_average_pooling", "fully_connected", "fully_connected_dropout")


class MLPConv(nn.Sequential):
    """One convolution and two 1x1 convolutions, each with ReLU (equation 2); `(B, in, H, W) -> (B, out, H, W)`.

    With a single number of maps it is a linear filter, as in other nets.
    """

    def __init__(self, in_channels: int, kernel: int, maps: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        for out_channels, size in zip(maps, (kernel, 1, 1), strict=False):
            self.append(nn.Conv2d(in_channels, out_channels, size, padding=size // 2))
            if batch_norm:
                self.append(nn.BatchNorm2d(out_channels))
            self.append(nn.ReLU())
            in_channels = out_channels


class NetworkInNetwork(nn.Module):
    """Network in Network for small images: `(B, C, H, W) -> (B, num_classes)`.

    Args:
        head: what turns the last maps, one a class, into logits. `global_average_pooling` is the paper's;
            `fully_connected` and `fully_connected_dropout` are those it is compared with in section 4.6: a linear
            layer over all pixels of the maps, without and with dropout in front of it.
        image_size: side of the images in pixels; the fully connected heads fix it, the other takes any from 4 on.
        perceptrons: false leaves the 1x1 convolutions out, for comparison: a net of three linear convolutions.
        width: factor on the maps of all layers but the last.
        batch_norm: normalise each batch after every convolution, which the paper does not. Narrow nets do not train
            without it: nine layers of few maps, and a ReLU on the logits.
        dropout: probability after the first two mlpconv layers, and in front of the layer that has it in its name.
    """

    def __init__(
        self,
        *,
        head: str = "global_average_pooling",
        image_size: int = 32,
        perceptrons: bool = True,
        width: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.5,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("head", head, HEADS)
        require_width(width)
        require_probability("dropout", dropout)
        n96, n160, n192 = (max(1, round(maps * width)) for maps in (96, 160, 192))
        self.image_size = None if head == "global_average_pooling" else image_size
        first = 0 if perceptrons else 2
        self.mlpconv1 = MLPConv(in_channels, 5, (n192, n160, n96)[first:], batch_norm)
        self.mlpconv2 = MLPConv(n96, 5, (n192, n192, n192)[first:], batch_norm)
        self.mlpconv3 = MLPConv(n192, 3, (n192, n192, num_classes)[first:], batch_norm)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)  # halves the side, rounded down
        self.dropout = nn.Dropout(dropout)
        self.head = build_head(head, num_classes, pixels=(image_size // 4) ** 2, dropout=dropout)
        initialise_he(self, "fan_in", (nn.Conv2d, nn.Linear))

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes, H/4, W/4)`: one map of confidence a class."""
        require_image_size(images, 4, "Network in Network")
        x = self.dropout(self.pool(self.mlpconv1(images)))
        x = self.dropout(self.pool(self.mlpconv2(x)))
        return self.mlpconv3(x)

    def forward(self, images: Tensor) -> Tensor:
        if self.image_size is not None:
            require_exact_size(images, self.image_size)
        return self.head(self.forward_features(images))


def build_head(head: str, num_classes: int, pixels: int, dropout: float) -> nn.Sequential:
    """Build what turns `(B, num_classes, H, W)` maps of `pixels` pixels into `(B, num_classes)` logits."""
    if head == "global_average_pooling":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    linear = nn.Linear(num_classes * pixels, num_classes)
    if head == "fully_connected":
        return nn.Sequential(nn.Flatten(), linear)
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), linear)
