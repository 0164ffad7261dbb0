"""What the tasks' predictions of single images share: fitting an image to a net, and drawing on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.core.config import DataConfig
from convatlas.data.decoding import centre_square

if TYPE_CHECKING:
    from convatlas.data.card import Card

__all__ = ["PALETTE", "Placement", "Served", "canvas_of", "fitted_image", "normalised"]

PALETTE = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"]


class Placement(NamedTuple):
    """Where the square that a net sees lies: its side, and how far the image was moved right and down in it."""

    width: int
    height: int
    left: int
    top: int


def fitted_image(image: Tensor, data: DataConfig, card: Card) -> tuple[Tensor, Placement]:
    """Bring an image `(C, H, W)` in [0, 1] to the shape that the preparation gave the others, `(1, C, size, size)`."""
    image, placement = _squared(image, card)
    size = (data.image_size, data.image_size)
    shrinks = max(image.shape[1:]) > data.image_size
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=shrinks), placement


def normalised(images: Tensor, data: DataConfig, card: Card) -> Tensor:
    """Normalise images `(B, C, H, W)` as in training, with their Canny edges where the data have them."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (card.mean, card.std))
    found = (images - mean) / std
    if not card.has_canny(data):
        return found
    from convatlas.data.edges import canny_edges

    edges = canny_edges((255 * images).round().to(torch.uint8).numpy())  # on 8 bits, as in the preparation
    return torch.cat([found, torch.from_numpy(edges)[:, None].float()], dim=1)


def _squared(image: Tensor, card: Card) -> tuple[Tensor, Placement]:
    height, width = image.shape[1:]
    if card.fitted == "centre":
        top, left, side, _ = centre_square(height, width)
        return image[:, top : top + side, left : left + side], Placement(side, side, -left, -top)
    if card.source.get("fit") == "letterbox":
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        padded = F.pad(image, (left, side - width - left, top, side - height - top))
        return padded, Placement(side, side, left, top)
    return image, Placement(width, height, 0, 0)


def canvas_of(image: Tensor) -> tuple[Tensor, int]:
    """Return an image `(C, H, W)` in [0, 1] as `(3, H', W')` bytes, 256 pixels at least, and the factor on its size."""
    factor = max(1, -(-256 // max(image.shape[1:])))
    canvas = (image.expand(3, -1, -1) * 255).round().to(torch.uint8)
    return canvas.repeat_interleave(factor, 1).repeat_interleave(factor, 2), factor


class Served(nn.Module):
    """A net behind its normalisation: images `(B, C, H, W)` in [0, 1] give probabilities `(B, classes, ...)`."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, run the net, and return probabilities."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits.softmax(dim=1)
