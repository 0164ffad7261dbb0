"""What the tasks' predictions of single images share: fitting an image to a net, and drawing on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.config import DataConfig, RunConfig
from convatlas.data.decoding import Spacing
from convatlas.data.squares import Geometry, fit_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from convatlas.data.card import Card

__all__ = ["PALETTE", "canvas_of", "fitted_image", "in_palette", "normalised", "picture_of"]

PALETTE = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"]


def fitted_image(
    pixels: NDArray[np.uint8], config: RunConfig, card: Card, spacing: Spacing | None = None
) -> tuple[Tensor, Geometry]:
    """Bring an image `(C, H, W)` to what the net gets, `(1, C, S, S)` in [0, 1], and say where its pixels went."""
    fitted, geometry = fit_image(pixels, card, config.data.image_size, spacing, config.recipe.test_crop)
    return fitted[None], geometry


def normalised(images: Tensor, data: DataConfig, card: Card) -> Tensor:
    """Normalise images `(B, C, H, W)` as in training, with their Canny edges where the data have them."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in card.normalisation(data))
    if card.has_canny(data):
        from convatlas.data.edges import canny_edges

        edges = canny_edges((255 * images).round().to(torch.uint8).cpu().numpy())  # on 8 bits, as in the preparation
        images = torch.cat([images, torch.from_numpy(edges)[:, None].to(images)], dim=1)
    return (images - mean) / std


def canvas_of(pixels: NDArray[np.uint8]) -> tuple[Tensor, int]:
    """Return an image `(C, H, W)` in three channels and 256 pixels at least, and the factor on its size."""
    factor = max(1, -(-256 // max(pixels.shape[1:])))
    canvas = torch.from_numpy(pixels.copy()).expand(3, -1, -1)
    return canvas.repeat_interleave(factor, 1).repeat_interleave(factor, 2), factor


def picture_of(canvas: Tensor) -> Image:
    """Return `(3, H, W)` bytes as a picture of Pillow's."""
    from PIL import Image

    return Image.fromarray(canvas.permute(1, 2, 0).numpy())


def in_palette(mask: NDArray[np.uint8]) -> Image:
    """Return class numbers `(H, W)` as a picture of Pillow's that holds them, and shows each in its colour."""
    from PIL import Image, ImageColor

    picture = Image.frombytes("P", mask.shape[::-1], mask.tobytes())
    shown = ["#000000", *(PALETTE[number % len(PALETTE)] for number in range(255))]
    picture.putpalette([value for colour in shown for value in ImageColor.getrgb(colour)])
    return picture
