"""U-Net: a contracting and an expanding path with copies across.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (MICCAI 2015), figure 1:
two unpadded 3x3 convolutions a level and a 2x2 max pooling down, four times over, with 64 to 1024 filters; on the way
up a 2x2 up-convolution that halves the filters, the cropped map of the same level beside it, and two more convolutions;
a 1x1 convolution at the end. A picture of 572 x 572 becomes a map of 388 x 388.

`padded` and `batch_norm` give the form in use today, whose map is as large as its picture.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_all_positive
from convatlas.models.layers.crop import centre_crop


class DoubleConvolution(nn.Module):
    """Two 3x3 convolutions, each followed by a ReLU; unpadded, `(B, in, H, W) -> (B, out, H - 4, W - 4)`."""

    def __init__(self, in_channels: int, out_channels: int, padded: bool, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            # a bias before batch normalisation would be subtracted again
            layers.append(nn.Conv2d(channels, out_channels, 3, padding=int(padded), bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class UNet(nn.Module):
    """U-Net.

    Args:
        base_width: filters of the first level; each level below has twice as many.
        depth: poolings; the paper has 4.
        padded: keep the size of the maps in the convolutions; without it the output is smaller than the input by
            `margin` on each side.
        batch_norm: normalise after each 3x3 convolution.
        dropout: probability at the end of the contracting path, behind its two lowest levels. The paper gives neither
            the place nor the rate; both are those of the authors' Caffe files.
    """

    def __init__(
        self,
        *,
        base_width: int = 64,
        depth: int = 4,
        padded: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.5,
        num_classes: int = 2,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        require_all_positive(depth=depth, base_width=base_width)
        self.depth = depth
        self.padded = padded
        widths = [base_width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConvolution(before, after, padded, batch_norm) for before, after in pairwise([in_channels, *widths])
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(DoubleConvolution(2 * w, w, padded, batch_norm) for w in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(base_width, num_classes, 1)
        # Gaussian weights of standard deviation sqrt(2/N) for N incoming nodes (section 3 of the paper): in an
        # up-convolution, whose kernel and stride are 2, each output pixel sees one input pixel, in all channels.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def margin(self) -> int:
        """Pixels by which the output is smaller than the input, on each side: 92 in the paper's form, 0 padded."""
        return 0 if self.padded else 6 * 2**self.depth - 4

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes, H - 2 * margin, W - 2 * margin)` logits."""
        self._check_size(images.shape[-2:])
        x, copies = images, []
        for level, convolutions in enumerate(self.down):
            x = convolutions(x if level == 0 else self.pool(x))
            if level >= self.depth - 1:
                x = self.dropout(x)
            copies.append(x)
        for copy, up, merge in zip(reversed(copies[:-1]), self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([centre_crop(copy, x.shape[-2:]), x], dim=1))
        return self.classifier(x)

    def _check_size(self, size: torch.Size) -> None:
        step = 2**self.depth
        if self.padded:
            smallest, rule = step, f"multiples of {step}"
        else:
            # A lowest map that enters with b pixels stands for an input of 2^d b + 4 (2^d - 1) and an output of
            # 2^d (b - 8) + 4, so that b = 8 is the smallest.
            smallest = 12 * step - 4
            rule = f"{smallest}, {smallest + step}, {smallest + 2 * step} and so on in steps of {step}"
        if all(side >= smallest and (side - smallest) % step == 0 for side in size):
            return
        near = [smallest + step * max(0, round((side - smallest) / step)) for side in size]
        raise ValueError(
            f"data.image_size={size[0]}x{size[1]} does not fit this U-Net; the sides that fit are {rule}, "
            f"the nearest {near[0]}x{near[1]}."
        )
