"""Views of the test images: several of each, with the mean of what the net says of them, or another one.

The softmax outputs are averaged, not the logits (Krizhevsky et al. 2012, section 4.1: ten views, four corners and the
centre with their mirror images; Simonyan and Zisserman 2015, section 4.2: three sizes).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.tasks import task_class

__all__ = ["VIEWS", "Cropped", "Flip", "MultiScale", "Shifted", "TenCrop", "TestTimeAugmentation", "Warped", "Wide"]


class TestTimeAugmentation(nn.Module):
    """A net over several views of each image; `(B, C, S, S) -> (B, classes)` logs of mean probabilities."""

    __test__ = False  # the name begins as pytest's tests do

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the views, batches of any size of images."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Run the views one after the other and average their probabilities."""
        logs = torch.stack([self.net(view).float().log_softmax(dim=1) for view in self.views(images)])
        return logs.logsumexp(dim=0) - math.log(len(logs))


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


class MultiScale(TestTimeAugmentation):
    """The image at 7/8, 8/8 and 9/8 of its size (224, 256 and 288 pixels): 3 views, for nets that take any size.

    VGG's mirror images are left to `Flip`: not every class survives mirroring.
    """

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the three views."""
        side = images.shape[-1]
        return [_scaled(images, side * eighths // 8) for eighths in (7, 8, 9)]


class Shifted(TestTimeAugmentation):
    """The image moved by an eighth of its side, right and down; its border is repeated behind it: 1 view."""

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the view."""
        side = images.shape[-1]
        return [F.pad(images, (side // 8, 0, side // 8, 0), mode="replicate")[:, :, :side, :side]]


class Wide(TestTimeAugmentation):
    """The image in a picture of 3:2, whose left part it is; its right border is repeated: 1 view.

    For nets that take any size.
    """

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the view."""
        return [F.pad(images, (0, images.shape[-1] // 2, 0, 0), mode="replicate")]


class Cropped(Wide):
    """The square in the middle of `Wide`, as a net of one size sees such a picture: 1 view."""

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the view."""
        [wide], side = super().views(images), images.shape[-1]
        return [wide[..., side // 4 : side // 4 + side]]


class Warped(Wide):
    """`Wide`, made square by shrinking its width: 1 view."""

    def views(self, images: Tensor) -> list[Tensor]:
        """Return the view."""
        [wide] = super().views(images)
        size = images.shape[-2:]
        return [F.interpolate(wide, size=size, mode="bilinear", align_corners=False, antialias=True)]


def _scaled(images: Tensor, side: int) -> Tensor:
    if side == images.shape[-1]:
        return images
    shrinks = side < images.shape[-1]
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks)


VIEWS: dict[str, type[TestTimeAugmentation]] = {
    "flip": Flip,
    "ten_crop": TenCrop,
    "multi_scale": MultiScale,
    "shifted": Shifted,
    "wide": Wide,
    "cropped": Cropped,
    "warped": Warped,
}
"""By the names that `evaluate tta=...` and `recipe.test_views` take."""


def with_views(net: nn.Module, view: str, config: RunConfig, option: str) -> TestTimeAugmentation:
    """Put test-time augmentation around a net.

    Args:
        net: a net of classification.
        view: a name of `VIEWS`.
        config: the net's run.
        option: what chose the view, for the message.

    Raises:
        UserError: the task is another, or the net does not take the sizes of the views.
    """
    if not task_class(config).has_image_logits:
        raise UserError(f"{option} is for classification, and this run is {config.data.task}; leave it out.")
    augmented = VIEWS[view](net)
    device = next(net.parameters()).device
    size = config.data.image_size
    was_training = net.training
    try:
        with torch.inference_mode():
            augmented.eval()(torch.zeros(1, config.data.in_channels, size, size, device=device))
    except (ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"{option}: this net does not take images of other sizes ({error}).") from error
    finally:
        augmented.train(was_training)
    return augmented
