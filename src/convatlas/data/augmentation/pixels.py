"""What changes the colours of a batch, or blots out a part of each image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["change_contrast", "change_saturation", "covered", "cut_out", "grey", "principal_colours", "turn_hue"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey (ITU-R BT.601)."""
MOST_IMAGES = 1000
"""Images that principal colours are measured on; more change nothing that could be seen."""


def grey(images: Tensor) -> Tensor:
    """Return `(B, 1, H, W)` of `(B, C, H, W)`: the luma of three channels, the mean of any other number."""
    if images.shape[1] == len(LUMA):
        return (images * images.new_tensor(LUMA).view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    return images.mean(dim=1, keepdim=True)


def change_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance of `(B, C, H, W)` images in [0, 1] from their mean grey; `factors`: `(B,)`."""
    middle = grey(images).mean(dim=(2, 3), keepdim=True)
    return (middle + factors[:, None, None, None] * (images - middle)).clamp_(0, 1)


def change_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance of each pixel of `(B, 3, H, W)` images in [0, 1] from its grey; `factors`: `(B,)`."""
    middle = grey(images)
    return (middle + factors[:, None, None, None] * (images - middle)).clamp_(0, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of each pixel of images in [0, 1]; value and saturation (HSV) stay.

    Args:
        images: `(B, 3, H, W)`.
        turns: `(B,)`, shares of the circle of hues; a third makes green of red.
    """
    highest, which = images.max(dim=1, keepdim=True)
    chroma = highest - images.amin(dim=1, keepdim=True)
    # of the two other channels, the next on the circle less the one after it: a sixth of the circle to each side
    ahead, behind = (images.gather(1, (which + step) % 3) for step in (1, 2))
    hue = (
        2 * which + (ahead - behind) / chroma.clamp_min(torch.finfo(images.dtype).tiny) + 6 * turns[:, None, None, None]
    )
    place = (hue - 2 * torch.arange(3, device=images.device)[None, :, None, None]) % 6  # from each channel's own hue
    return highest - chroma * (torch.minimum(place, 6 - place) - 1).clamp(0, 1)


def principal_colours(images: NDArray[np.uint8]) -> Tensor:
    """Return the principal components of the colours of training images, each as long as its eigenvalue.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012), section 4.1. Pixels
    count from 0 to 1 here; the paper names no unit.

    Args:
        images: `(N, C, H, W)`; at most `MOST_IMAGES` of them, evenly spaced, are used.

    Returns:
        `(C, C)` float32, a component in each column.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(np.int64))
    colours = np.moveaxis(images[chosen], 1, 0).reshape(images.shape[1], -1) / 255
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(colours)))
    return torch.from_numpy((vectors * values).astype(np.float32))


def cut_out(images: Tensor, centre: Tensor, side: int) -> Tensor:
    """Set one square in each image to 0; what of it lies outside is lost, so that the visible part varies.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout" (2017), section 3.2.

    Args:
        images: `(B, C, H, W)`.
        centre: `(B, 2)` row and column; of an even side the pixel after the middle.
        side: of the square, in pixels.
    """
    in_rows, in_columns = (covered(centre[:, axis], side, images.shape[2 + axis]) for axis in (0, 1))
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def covered(centre: Tensor, sides: Tensor | int, length: int) -> Tensor:
    """Say which of `length` pixels a stretch of so many pixels around each centre covers: `(B, length)` bool."""
    sides = torch.as_tensor(sides, device=centre.device).expand(len(centre))[:, None]
    distance = torch.arange(length, device=centre.device) - (centre[:, None] - sides // 2)
    return (distance >= 0) & (distance < sides)
