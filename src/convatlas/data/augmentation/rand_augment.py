"""RandAugment: a few operations, drawn for each image from fourteen, all of one strength.

Cubuk, Zoph, Shlens, Le, "RandAugment" (2020), section 3: identity, autocontrast, equalize, rotate, solarize, colour,
posterize, contrast, brightness, sharpness, shear and translate along both axes. The operations are torchvision's but
for one, and so are their ranges, which are those of AutoAugment. All images of a batch that drew the same are changed
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MOST_OPERATIONS", "OPERATIONS", "rand_augment"]

MOST_OPERATIONS = 8
STRENGTHS = 30
"""Magnitudes count from 0 to this."""
DEGREES, SHEAR_DEGREES, SHARE_OF_SIDE, FACTOR, BITS = 30.0, 16.7, 150 / 331, 0.9, 4
"""The strongest rotation, shear (a slope of 0.3), translation, change of a factor from 1, and bits that are lost."""

Operation = Callable[[Tensor, float], Tensor]
"""Changes `(B, C, S, S)` images in [0, 1]; the number is the strength, from -1 to 1."""


def operations() -> Mapping[str, Operation]:
    """Return the fourteen by name; those without a direction take the strength's size alone."""
    import torchvision.transforms.v2.functional as tv  # takes seconds to import, and most trainings do without

    def move(images: Tensor, *, x: float = 0, y: float = 0, shear_x: float = 0, shear_y: float = 0) -> Tensor:
        bilinear = tv.InterpolationMode.BILINEAR
        shift, shear = [x * images.shape[-1], y * images.shape[-2]], [shear_x, shear_y]
        return tv.affine(images, angle=0, translate=shift, scale=1, shear=shear, interpolation=bilinear)

    def rotate(images: Tensor, strength: float) -> Tensor:
        return tv.rotate(images, strength * DEGREES, interpolation=tv.InterpolationMode.BILINEAR)

    return {
        "identity": lambda images, strength: images,  # noqa: ARG005
        "autocontrast": lambda images, strength: tv.autocontrast(images),  # noqa: ARG005
        "equalize": lambda images, strength: tv.equalize(images),  # noqa: ARG005
        "rotate": rotate,
        "solarize": lambda images, strength: tv.solarize(images, 1 - abs(strength)),
        "colour": lambda images, strength: tv.adjust_saturation(images, 1 + FACTOR * strength),
        "posterize": lambda images, strength: tv.posterize(images, 8 - round(BITS * abs(strength))),
        "contrast": lambda images, strength: tv.adjust_contrast(images, 1 + FACTOR * strength),
        "brightness": lambda images, strength: tv.adjust_brightness(images, 1 + FACTOR * strength),
        "sharpness": lambda images, strength: sharpen(images, 1 + FACTOR * strength),
        "shear_x": lambda images, strength: move(images, shear_x=SHEAR_DEGREES * strength),
        "shear_y": lambda images, strength: move(images, shear_y=SHEAR_DEGREES * strength),
        "translate_x": lambda images, strength: move(images, x=SHARE_OF_SIDE * strength),
        "translate_y": lambda images, strength: move(images, y=SHARE_OF_SIDE * strength),
    }


def sharpen(images: Tensor, factor: float) -> Tensor:
    """Scale the distance of `(B, C, S, S)` images from their smoothed selves; the outermost pixels stay.

    As Pillow and torchvision do it, except that torchvision's convolution gives an image other bits in another batch.
    """
    smooth = images.clone()
    inner = images[..., 1:-1, 1:-1]
    smooth[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13  # the middle counts 5 of 13
    return (smooth + factor * (images - smooth)).clamp_(0, 1)


OPERATIONS = 14
"""How many there are."""


def rand_augment(images: Tensor, drawn: Tensor, downwards: Tensor, magnitude: int) -> Tensor:
    """Change each image by its operations, one after the other.

    Args:
        images: `(B, C, S, S)` float in [0, 1], of 1 or 3 channels.
        drawn: `(B, n)` int64, numbers of operations in the order above; on the CPU, wherever the images lie.
        downwards: `(B, n)` bool, the direction of those that have one; beside `drawn`.
        magnitude: from 0 to `STRENGTHS`.
    """
    known = list(operations().values())
    images = images.clone()
    for number, down in zip(drawn.unbind(1), downwards.unbind(1), strict=True):
        for which, operation in enumerate(known):
            for sign in (1, -1):
                rows = torch.nonzero((number == which) & (down == (sign < 0))).flatten()
                if len(rows):
                    there = rows.to(images.device)
                    images[there] = operation(images[there], sign * magnitude / STRENGTHS)
    return images
