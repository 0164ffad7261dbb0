"""Augmentation of whole batches, each image with its own draw.

First the random numbers of a batch are drawn (`Augmenter.draw`), then they are applied (`Changes`). So each of several
processes can draw for the whole batch and apply the numbers of its own share. All of it is torch operations without a
loop over images, on the device where the images lie.

Order: pad and crop, mirror, rotate and zoom, brightness, then (after normalisation) cutout. What comes into an image
from outside is black, and class 0 in a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convatlas.config import Augmentation
from convatlas.errors import UserError

__all__ = ["Augmenter", "Changes", "cut_out", "flip", "flip_boxes", "pad_and_crop", "rotate_and_zoom"]


class Augmenter:
    """Augmentation as a recipe has it, for images of one size.

    Args:
        config: the recipe's augmentation; with everything zero or false nothing is changed, bit for bit.
        task: "classification", "detection" or "segmentation".
        image_size: side of the images in pixels.

    Raises:
        UserError: the task does not allow an option.
    """

    def __init__(self, config: Augmentation, task: str, image_size: int) -> None:
        if task == "detection":
            for key in ("crop_padding", "cutout", "rotation_degrees", "scale"):
                if getattr(config, key):
                    raise UserError(
                        f"recipe.augmentation.{key}={getattr(config, key)} would cut objects or loosen their boxes; "
                        "for detection set it to 0 (horizontal_flip and brightness are allowed)."
                    )
        self.config = config
        self.image_size = image_size

    def draw(self, images: int, generator: torch.Generator) -> Changes:
        """Draw for a number of images, on the generator's device.

        Every kind of number is drawn whether it is used or not: switching one part off leaves the others as they were.
        """
        config = self.config
        place: dict[str, Any] = {"generator": generator, "device": generator.device}

        def around(middle: float, spread: float) -> Tensor:
            return middle + spread * (2 * torch.rand(images, **place) - 1)

        return Changes(
            config=config,
            shift=torch.randint(0, 2 * config.crop_padding + 1, (images, 2), **place),
            mirrored=(torch.rand(images, **place) < 0.5) & config.horizontal_flip,
            degrees=around(0.0, config.rotation_degrees),
            zoom=around(1.0, config.scale),
            hole=torch.randint(0, self.image_size, (images, 2), **place),
            brightness=around(1.0, config.brightness),
        )


@dataclass(frozen=True, eq=False)
class Changes:
    """What happens to each of B images. Indexing with a slice takes the changes of some of them.

    Attributes:
        config: which changes there are.
        shift: `(B, 2)` int64, row and column of the crop in the padded image.
        mirrored: `(B,)` bool.
        degrees: `(B,)` float32, counter-clockwise.
        zoom: `(B,)` float32, above 1 enlarges.
        hole: `(B, 2)` int64, row and column of the centre of the cut-out square.
        brightness: `(B,)` float32, factor.
    """

    config: Augmentation
    shift: Tensor
    mirrored: Tensor
    degrees: Tensor
    zoom: Tensor
    hole: Tensor
    brightness: Tensor

    def __getitem__(self, which: slice) -> Changes:
        return self._each(lambda numbers: numbers[which])

    def to(self, device: torch.device) -> Changes:
        """Move the numbers to the images' device."""
        return self._each(lambda numbers: numbers.to(device))

    def images(self, images: Tensor) -> Tensor:
        """Change `(B, C, S, S)` float images in [0, 1], before normalisation."""
        images = self._move(images, mode="bilinear")
        if self.config.brightness:
            images = (images * self.brightness[:, None, None, None]).clamp_(0, 1)
        return images

    def moved(self, images: Tensor) -> Tensor:
        """Move `(B, C, S, S)` float images without changing their brightness."""
        return self._move(images, mode="bilinear")

    def normalised(self, images: Tensor) -> Tensor:
        """Cut squares out of normalised `(B, C, S, S)` images; 0 is the mean there."""
        return cut_out(images, self.hole, self.config.cutout) if self.config.cutout else images

    def masks(self, masks: Tensor) -> Tensor:
        """Move `(B, S, S)` class numbers as the images are moved; no new class numbers arise."""
        return self._move(masks[:, None].float(), mode="nearest")[:, 0].to(masks.dtype)

    def boxes(self, boxes: list[Tensor], width: int) -> list[Tensor]:
        """Mirror the `(n, 4)` boxes of the images, `width` pixels wide, that are mirrored."""
        return [flip_boxes(b, width) if m else b for b, m in zip(boxes, self.mirrored.tolist(), strict=True)]

    def _move(self, images: Tensor, mode: str) -> Tensor:
        config = self.config
        if config.crop_padding:
            images = pad_and_crop(images, self.shift, config.crop_padding)
        if config.horizontal_flip:
            images = flip(images, self.mirrored)
        if config.rotation_degrees or config.scale:
            images = rotate_and_zoom(images, self.degrees, self.zoom, mode)
        return images

    def _each(self, change: Callable[[Tensor], Tensor]) -> Changes:
        names = [field.name for field in fields(self) if field.name != "config"]
        numbers: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **numbers)


def pad_and_crop(images: Tensor, shift: Tensor, padding: int) -> Tensor:
    """Pad with zeros by `padding` on each side and take the window that begins at `shift`.

    Args:
        images: `(B, C, H, W)`.
        shift: `(B, 2)` row and column, from 0 to `2 * padding`.
        padding: pixels.
    """
    height, width = images.shape[2:]
    windows = F.pad(images, (padding, padding, padding, padding)).unfold(2, height, 1).unfold(3, width, 1)
    every = torch.arange(len(images), device=images.device)
    return windows[every, :, shift[:, 0], shift[:, 1]]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror left and right those of `(B, C, H, W)` where `which`, `(B,)`, is true."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Mirror `(n, 4)` boxes `x1, y1, x2, y2` in an image of `width` pixels."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def rotate_and_zoom(images: Tensor, degrees: Tensor, zoom: Tensor, mode: str) -> Tensor:
    """Turn each image about its centre and enlarge it, in one resampling; zeros come in from outside.

    Args:
        images: `(B, C, H, W)` float.
        degrees: `(B,)`, counter-clockwise as one looks at the image.
        zoom: `(B,)`, above 1 enlarges.
        mode: "bilinear" or "nearest".
    """
    height, width = images.shape[2:]
    # Each target pixel looks up the point it comes from, hence the inverse. Rows point downwards, and the coordinates
    # of grid_sample run from -1 to 1 along both sides, which only for squares turns without shearing: hence the ratios.
    cos, sin = torch.cos(torch.deg2rad(degrees)) / zoom, torch.sin(torch.deg2rad(degrees)) / zoom
    zero = torch.zeros_like(cos)
    rows = [
        torch.stack([cos, -sin * height / width, zero], dim=1),
        torch.stack([sin * width / height, cos, zero], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def cut_out(images: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set one square in each image to 0; what of it lies outside is lost, so that the visible part varies.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017), section 3.2.

    Args:
        images: `(B, C, H, W)`.
        centre: `(B, 2)` row and column; of an even side the pixel after the middle.
        side: of the square, in pixels.
    """
    in_rows, in_columns = (_covered(centre[:, axis], side, images.shape[2 + axis], images.device) for axis in (0, 1))
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def _covered(centre: Tensor, side: int, length: int, device: torch.device) -> Tensor:
    """Say which of `length` pixels a stretch around each centre covers: `(B, length)` bool."""
    distance = torch.arange(length, device=device) - (centre - side // 2)[:, None]
    return (distance >= 0) & (distance < side)
