"""What moves the pixels of a batch: crops, mirroring, rotation, and windows that are cut out and scaled back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "boxes_in_window",
    "flip",
    "flip_boxes",
    "inception_windows",
    "pad_and_crop",
    "rotate_and_zoom",
    "see_through",
    "within",
    "zoomed_out",
]

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Height to width of Inception's crops (Szegedy et al., "Going Deeper with Convolutions", 2015, section 6)."""
TRIALS = 10
"""Shapes drawn for a crop; the first that fits into the image is taken, and the whole image if none does."""


def pad_and_crop(images: Tensor, shift: Tensor, padding: int, mode: str = "constant") -> Tensor:
    """Pad by `padding` on each side, as `F.pad` does in this mode, and take the window that begins at `shift`.

    Args:
        images: `(B, C, H, W)`.
        shift: `(B, 2)` row and column, from 0 to `2 * padding`.
        padding: pixels.
        mode: "constant" (zeros) or "reflect".
    """
    height, width = images.shape[2:]
    windows = F.pad(images, (padding, padding, padding, padding), mode).unfold(2, height, 1).unfold(3, width, 1)
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
        degrees: `(B,)`, counter-clockwise as one looks at the image; may lie on another device than the images.
        zoom: `(B,)`, above 1 enlarges; beside `degrees`.
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
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


# ---- windows: `(B, 4)` left, top, width and height in shares of the image ------------------------------------------


def inception_windows(areas: Tensor, ratios: Tensor, places: Tensor, limits: tuple[float, float]) -> Tensor:
    """Make windows of random area and shape that lie within the image; returns `(B, 4)`.

    Args:
        areas: `(B, TRIALS)` in [0, 1), to be scaled to `limits`.
        ratios: `(B, TRIALS)` in [0, 1), to be scaled to `ASPECT_RATIOS`, evenly in their logarithm.
        places: `(B, 2)` in [0, 1), column and row among those that are possible.
        limits: least and largest share of the image's area.
    """
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    area = limits[0] + (limits[1] - limits[0]) * areas
    ratio = torch.exp(low + (high - low) * ratios)
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2)
    fits = (sides <= 1).all(dim=2)
    first = fits.int().argmax(dim=1)  # the first of the largest values, hence the first that fits
    every = torch.arange(len(areas), device=areas.device)
    size = torch.where(fits.any(dim=1)[:, None], sides[every, first], 1.0)
    return torch.cat([places * (1 - size), size], dim=1)


def zoomed_out(which: Tensor, factors: Tensor, places: Tensor) -> Tensor:
    """Make windows larger than the image, which lies somewhere in them (Liu et al., "SSD", 2016, section 3.6).

    Args:
        which: `(B,)` bool; the others get the whole image.
        factors: `(B,)` window's side in sides of the image, 1 or more.
        places: `(B, 2)` in [0, 1), the image's column and row among those that are possible.

    Returns:
        `(B, 4)`.
    """
    size = torch.where(which, factors, 1.0)[:, None].expand(-1, 2)
    return torch.cat([-places * (size - 1), size], dim=1)


def within(outer: Tensor, inner: Tensor) -> Tensor:
    """Return windows that are given in shares of other windows in shares of the image; all are `(B, 4)`."""
    corner = outer[:, :2] + inner[:, :2] * outer[:, 2:]
    return torch.cat([corner, outer[:, 2:] * inner[:, 2:]], dim=1)


def see_through(images: Tensor, windows: Tensor, mode: str, samples: int = 1) -> Tensor:
    """Resample each image to what its window shows, at the images' size; zeros come in from outside.

    Args:
        images: `(B, C, H, W)` float.
        windows: `(B, 4)`, on the CPU, wherever the images lie.
        mode: "bilinear" or "nearest".
        samples: where a window is larger than the image, the points a side whose mean makes a pixel, so that what
            shrinks is smoothed.
    """
    shrinks = (windows[:, 2:] > 1).any(dim=1)
    seen = torch.empty_like(images)
    for which, points in ((~shrinks, 1), (shrinks, samples)):
        rows = torch.nonzero(which).flatten()
        if len(rows):
            there = rows.to(images.device)
            seen[there] = _resampled(images[there], windows[rows], mode, points)
    return seen


def _resampled(images: Tensor, windows: Tensor, mode: str, samples: int) -> Tensor:
    batch, channels, height, width = images.shape
    left, top, wide, high = windows.unbind(1)
    zero = torch.zeros_like(left)
    # grid_sample counts from -1 to 1 along both sides.
    rows = [
        torch.stack([wide, zero, 2 * left + wide - 1], dim=1),
        torch.stack([zero, high, 2 * top + high - 1], dim=1),
    ]
    size = [batch, channels, height * samples, width * samples]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(images.device), size, align_corners=False)
    # The border is repeated and what lies outside cleared afterwards: zeros would darken the outermost half pixel.
    seen = F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    seen = seen * (grid.abs() <= 1).all(dim=3)[:, None]
    return F.avg_pool2d(seen, samples) if samples > 1 else seen


def boxes_in_window(
    boxes: Tensor, labels: Tensor, window: Tensor, side: int, least_area: float
) -> tuple[Tensor, Tensor]:
    """Return the boxes of one image as its window shows them, and their labels.

    Boxes are clipped. Left out are those of whose area less than `least_area` is seen, and what is narrower than a
    pixel then.

    Args:
        boxes: `(n, 4)`, `x1, y1, x2, y2` in pixels.
        labels: `(n,)`.
        window: `(4,)`.
        side: of the image, in pixels.
        least_area: share of a box's area.
    """
    corner, size = window[:2].repeat(2), window[2:].repeat(2)
    whole = (boxes / side - corner) / size * side
    seen = whole.clamp(0, side)
    width, height = (seen[:, 2:] - seen[:, :2]).unbind(1)
    share = width * height / (whole[:, 2:] - whole[:, :2]).prod(dim=1)
    stays = (share >= least_area) & (width >= 1) & (height >= 1)
    return seen[stays], labels[stays]
