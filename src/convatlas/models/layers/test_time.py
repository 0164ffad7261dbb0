"""Test-time augmentation: several views of an image, and the mean of what the net says of them.

The softmax outputs are averaged, not the logits (Krizhevsky et al. 2012, section 4.1: ten views, four corners and the
centre with their mirror images).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Flip", "TenCrop", "TestTimeAugmentation"]


class TestTimeAugmentation(nn.Module):
    """A net over several views of each image; `(B, C, S, S) -> (B, classes)` logs of mean probabilities."""

    __test__ = False  # the name begins as pytest's tests do

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the views, each of the images' own size."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Run all views as one batch and average their probabilities."""
        views = self.views(images)
        logits: Tensor = self.net(torch.cat(views))
        return logits.softmax(dim=1).view(len(views), len(images), -1).mean(dim=0).log()


class Flip(TestTimeAugmentation):
    """The image and its mirror image: 2 views."""

    def views(self, images: Tensor) -> list[Tensor]:
        """Return both."""
        return [images, images.flip(3)]


class TenCrop(TestTimeAugmentation):
    """Four corners and the centre of 7/8 of the side (224 of 256), and their mirror images: 10 views.

    Crops are scaled back to the images' size, because many nets take one size only.
    """

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the ten views."""
        side = images.shape[-1]
        crop = side * 7 // 8
        far, middle = side - crop, (side - crop) // 2
        corners = [(0, 0), (0, far), (far, 0), (far, far), (middle, middle)]
        crops = [images[:, :, y : y + crop, x : x + crop] for y, x in corners]
        scaled = [F.interpolate(c, size=(side, side), mode="bilinear", align_corners=False) for c in crops]
        return scaled + [view.flip(3) for view in scaled]
