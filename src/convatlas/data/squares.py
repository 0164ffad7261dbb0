"""Images fitted to a square, by preparation, training and prediction alike, and where their pixels went.

In training from shards plain JPEG and PNG are decoded by torchvision, about 1.5 times as fast as by Pillow and to the
same pixels (`read_crop`). A new image is fitted as those of a data set were by `fit_image`, which takes its data card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .decoding import BadImageError, Spacing, as_picture

if TYPE_CHECKING:
    from torch import Tensor

    from convatlas.data.card import Card

__all__ = [
    "Fit",
    "Geometry",
    "centre_square",
    "fit",
    "fit_geometry",
    "fit_image",
    "positions",
    "read_crop",
    "resampled",
    "resize",
    "resize_centre",
    "sampled",
    "shrink",
    "size_in_shards",
    "steps",
    "vanishes",
    "window_in",
]

Fit: TypeAlias = Literal["centre", "stretch", "letterbox", "millimetres"]
"""How an image becomes a square: its centre is cut out; both sides are scaled; the longer side is scaled and black
borders are added to the shorter one; or, in medical images, a square of so many millimetres is cut from the middle."""
Square: TypeAlias = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of an image went: `x` to `x * scale[0] + shift[0]`, and `y` to `y * scale[1] + shift[1]`."""

    scale: tuple[float, float]
    shift: tuple[float, float]

    def scaled(self, factor: float) -> Geometry:
        """Return the geometry after a further scaling of the square."""
        return Geometry(
            (self.scale[0] * factor, self.scale[1] * factor), (self.shift[0] * factor, self.shift[1] * factor)
        )

    def forward(self, boxes: Any) -> Any:
        """Bring boxes `(n, 4)`, `x1, y1, x2, y2`, an array or a tensor, from the image into the square."""
        return boxes * _like(boxes, self.scale) + _like(boxes, self.shift)

    def back(self, boxes: Any) -> Any:
        """Bring boxes `(n, 4)` from the square into the image; they may reach out of it."""
        return (boxes - _like(boxes, self.shift)) / _like(boxes, self.scale)

    def maps_back(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring maps `(K, S, S)` from the square into the image of `size` (height, width): `(K, H, W)`.

        Between pixels they are interpolated; where the square does not reach, they are 0.
        """
        import torch
        import torch.nn.functional as F

        axes = [
            ((torch.arange(length) + 0.5) * scale + shift) * 2 / maps.shape[-1] - 1
            for length, scale, shift in zip(size, self.scale[::-1], self.shift[::-1], strict=True)
        ]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        inside = (rows.abs() <= 1) & (columns.abs() <= 1)
        grid = torch.stack([columns, rows], dim=-1)[None]
        found = F.grid_sample(maps[None].float(), grid, padding_mode="border", align_corners=False)[0]
        return found * inside


def _like(boxes: Any, pair: tuple[float, float]) -> Any:
    return boxes.new_tensor(pair * 2) if hasattr(boxes, "new_tensor") else np.array(pair * 2)


def _places(height: int, width: int, side: int, how: Fit) -> tuple[Square, Square]:
    """Return which part of an image is taken, and which part of the square of `side` it fills."""
    if how == "centre":
        return centre_square(height, width), (0, 0, side, side)
    if how == "stretch":
        return (0, 0, height, width), (0, 0, side, side)
    assert how == "letterbox", "millimetres are those of a file, not of pixels"
    high, wide = (max(1, round(length * side / max(height, width))) for length in (height, width))
    return (0, 0, height, width), ((side - high) // 2, (side - wide) // 2, high, wide)


def fit_geometry(height: int, width: int, side: int, how: Fit) -> Geometry:
    """Return where `fit` brings the pixels of an image of this size."""
    (top, left, *taken), (to_top, to_left, *filled) = _places(height, width, side, how)
    scale_y, scale_x = (new / old for new, old in zip(filled, taken, strict=True))
    return Geometry((scale_x, scale_y), (to_left - left * scale_x, to_top - top * scale_y))


def fit(pixels: NDArray[np.uint8], side: int, how: Fit, *, nearest: bool = False) -> NDArray[np.uint8]:
    """Make a `(C, side, side)` image of a `(C, H, W)` one, smoothed beforehand where it shrinks.

    Args:
        pixels: of the image, or `(1, H, W)` class numbers.
        side: of the square.
        how: see `Fit`; "millimetres" is not done here.
        nearest: take each pixel from the nearest one, as class numbers must be.
    """
    (top, left, height, width), (to_top, to_left, high, wide) = _places(pixels.shape[1], pixels.shape[2], side, how)
    inner = _resampled(pixels[:, top : top + height, left : left + width], (high, wide), nearest)
    if (high, wide) == (side, side):
        return inner
    square = np.zeros((len(pixels), side, side), dtype=np.uint8)
    square[:, to_top : to_top + high, to_left : to_left + wide] = inner
    return square


def fit_image(
    pixels: NDArray[np.uint8], card: Card, image_size: int, spacing: Spacing | None = None, crop: float = 1.0
) -> tuple[Tensor, Geometry]:
    """Bring a new image to what nets get, as the preparation and the reader of batches brought those of a data set.

    Args:
        pixels: `(C, H, W)` uint8, from `decode_image`.
        card: of the data set that the net was trained on.
        image_size: side of the images that the net gets.
        spacing: millimetres from row to row and from column to column, where the file tells them.
        crop: `recipe.test_crop`.

    Returns:
        `(C, image_size, image_size)` in [0, 1], not normalised, and where the image's pixels went without `crop`.

    Raises:
        BadImageError: the images of the data set were cut to a square of so many millimetres, which the file does not
            tell, and this one has another size.
    """
    import torch

    if card.fitted == "millimetres" and spacing is not None:
        kept, step = card.image_shape[1] or image_size, steps(card.source.get("pixel_mm"), spacing)
        if vanishes(pixels.shape[1:], step):
            raise BadImageError(f"its pixels of {spacing[1]:g} x {spacing[0]:g} mm leave nothing of it")
        square = torch.from_numpy(resampled(pixels, kept, step))[None].float().div_(255)
        first = [positions(length, kept, each)[0] for length, each in zip(pixels.shape[1:], step, strict=True)]
        shift_y, shift_x = (0.5 - (at + 0.5) / each for at, each in zip(first, step, strict=True))
        geometry = Geometry((1 / step[1], 1 / step[0]), (shift_x, shift_y))
        return resize(square, image_size)[0], geometry.scaled(image_size / kept)

    pixels = pixels.copy()  # decoders give arrays that must not be written to, of which torch warns
    size = height, width = pixels.shape[1], pixels.shape[2]
    if card.storage == "shards":
        how = card.fitted or "centre"
        stored = shrink(pixels, size_in_shards(height, width, card.stored_side))
        taken = centre_square(stored.shape[1], stored.shape[2], crop) if how == "centre" else (0, 0, *stored.shape[1:])
        images = _cropped(torch.from_numpy(stored), taken, image_size).float().div_(255)
        return images, fit_geometry(height, width, image_size, how)
    side = card.image_shape[1]
    assert side is not None, "images in arrays have one size"
    if card.fitted == "millimetres" and size != card.image_shape[1:]:
        raise BadImageError(
            f"it has {width} x {height} pixels, and a picture file does not tell how many millimetres they are: give a "
            f"slice of {card.image_shape[2]} x {side} pixels, resampled and cut as those of {card.name} were"
        )
    if card.fitted in {None, "millimetres"}:  # of one size as they came: others are scaled like them
        images = resize_centre(torch.from_numpy(pixels)[None].float().div_(255), image_size, crop)[0]
        return images, fit_geometry(height, width, image_size, "stretch")
    assert card.fitted is not None
    square = torch.from_numpy(fit(pixels, side, card.fitted))[None].float().div_(255)
    images = resize_centre(square, image_size, crop)[0]
    return images, fit_geometry(height, width, side, card.fitted).scaled(image_size / side)


# ---- squares of so many millimetres ---------------------------------------------------------------------------------


def steps(pixel_mm: float | None, spacing: Sequence[float] | None) -> tuple[float, float]:
    """Return how many pixels of a slice make one of `pixel_mm`, from row to row and from column to column."""
    if pixel_mm is None or spacing is None:
        return 1.0, 1.0
    return pixel_mm / spacing[0], pixel_mm / spacing[1]


def vanishes(size: tuple[int, ...], step: tuple[float, float]) -> bool:
    """Say whether less than a pixel would be left of a slice: its file states pixels that no scanner has."""
    return any(each > length for each, length in zip(step, size, strict=True))


def resampled(pixels: NDArray[np.uint8], side: int, step: tuple[float, float]) -> NDArray[np.uint8]:
    """Cut a square `(C, side, side)` from the middle of a slice `(C, H, W)`, its pixels `step` old ones apart."""
    from scipy import ndimage

    # what lies between the new pixels has to be averaged, or it would alias
    blur = [max(0.0, (each - 1) / 2) for each in step]
    planes = [sampled(ndimage.gaussian_filter(plane.astype(np.float64), blur), side, step, order=1) for plane in pixels]
    return np.clip(np.rint(np.stack(planes)), 0, 255).astype(np.uint8)


def sampled(plane: NDArray[Any], side: int, step: tuple[float, float], order: int) -> NDArray[Any]:
    """Sample a square around the middle of an image; zeros come in from outside.

    Args:
        plane: `(H, W)`.
        side: of the square, in new pixels.
        step: old pixels from one new pixel to the next, along both axes.
        order: 0 takes the nearest old pixel, 1 interpolates between four.
    """
    from scipy import ndimage

    rows, columns = (positions(length, side, s) for length, s in zip(plane.shape, step, strict=True))
    grid = np.meshgrid(rows, columns, indexing="ij")
    found: NDArray[Any] = ndimage.map_coordinates(plane, grid, order=order, mode="constant", prefilter=False)
    return found


def positions(length: int, side: int, step: float) -> NDArray[np.float64]:
    """Return where the middles of `side` new pixels lie among `length` old ones; both middles coincide.

    Along an axis of odd and one of even length the middle would lie between pixels; where the pixels keep their size it
    is moved by half a pixel, so that they are copied and not interpolated.
    """
    middle = (length - 1) / 2
    if step == 1 and (length - side) % 2:
        middle += 0.5
    return (np.arange(side, dtype=np.float64) - (side - 1) / 2) * step + middle


def resize(images: Tensor, side: int) -> Tensor:
    """Resample `(B, C, H, W)` float images to `(B, C, side, side)`, smoothed beforehand where they shrink."""
    import torch.nn.functional as F

    height, width = images.shape[2:]
    if (height, width) == (side, side):
        return images
    shrinks = side < max(height, width)
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks)


def resize_centre(images: Tensor, side: int, share: float) -> Tensor:
    """Resample `(B, C, S, S)` float images, and cut out the middle: `side` pixels, which are a share of theirs."""
    whole = round(side / share)
    first = (whole - side) // 2
    return resize(images, whole)[..., first : first + side, first : first + side]


def centre_square(height: int, width: int, share: float = 1.0) -> Square:
    """Return the square in the middle of an image, a share of its shorter side: top, left, height, width."""
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


def window_in(window: Sequence[float], height: int, width: int) -> Square:
    """Find a random crop in an image that is no square; returns top, left, height and width in pixels, at least 1.

    A crop is drawn as a window in a square, before the size of the image is known. In the image it keeps its share of
    the area, its shape, and its place between the borders, where 0 is left or top and 1 is right or bottom. If it is
    longer than the image, it is cut to it.

    Args:
        window: left, top, width and height, in shares of a square's side.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    left, top, wide, high = window
    scale = (height * width) ** 0.5
    box_height, box_width = (
        max(1, min(length, round(share * scale))) for share, length in ((high, height), (wide, width))
    )
    y, x = (place / (1 - share) if share < 1 else 0.5 for place, share in ((top, high), (left, wide)))
    at_top, at_left = round(min(y, 1) * (height - box_height)), round(min(x, 1) * (width - box_width))
    return at_top, at_left, box_height, box_width


def size_in_shards(height: int, width: int, shorter_side: int | None) -> tuple[int, int]:
    """Return the size that an image is stored with: its shorter side is brought down to a length, never up."""
    if shorter_side is None or min(height, width) <= shorter_side:
        return height, width
    ratio = shorter_side / min(height, width)
    return round(height * ratio), round(width * ratio)


def shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a `(C, H, W)` image down to a height and width."""
    height, width = pixels.shape[1:]
    return pixels if size == (height, width) else _resampled(pixels, size)


def _resampled(pixels: NDArray[np.uint8], size: tuple[int, int], nearest: bool = False) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = size
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    resized = np.asarray(as_picture(pixels).resize((width, height), how))
    return resized[None] if resized.ndim == 2 else np.ascontiguousarray(resized.transpose(2, 0, 1))


def read_crop(data: Any, channels: int, crop: Square, side: int) -> Tensor:
    """Decode a plain JPEG or PNG, cut a part out of it and bring that to `(C, side, side)` uint8.

    Args:
        data: bytes, or a buffer of them.
        channels: 1 or 3.
        crop: top, left, height and width of the part, in pixels.
        side: of the square.

    Raises:
        RuntimeError: the data are damaged.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_image

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    pixels = decode_image(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()), mode)
    return _cropped(pixels, crop, side)


def _cropped(pixels: Tensor, crop: Square, side: int) -> Tensor:
    import torch.nn.functional as F

    top, left, height, width = crop
    part = pixels[None, :, top : top + height, left : left + width]
    if (height, width) == (side, side):
        return part[0]
    return F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]
