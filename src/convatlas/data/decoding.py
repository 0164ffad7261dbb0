"""Files of images decoded, fitted to a size, and encoded again.

Two decoders share the work. Pillow reads whatever a raw folder may hold and checks it, once, in the preparation. In
training only plain JPEG and PNG are left, which torchvision decodes about 1.5 times as fast, to the same pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = [
    "MAX_PIXELS",
    "MODES",
    "BadImageError",
    "Decoded",
    "Fit",
    "centre_square",
    "decode",
    "encode",
    "fit",
    "read_crop",
    "shrink",
    "size_in_shards",
    "window_in",
]

Fit = Literal["centre", "stretch"]
"""How an image becomes a square: its centre is cut out, or the whole is squeezed."""

MAX_PIXELS = 100_000_000
"""More pixels than any camera's; a file that claims more is taken for a decompression bomb and not decoded."""
JPEG_QUALITY = 95
"""Of pictures that are stored smaller than they came."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of 8-bit images, by channels."""
_ORIENTATION = 0x0112  # the number of the EXIF entry


class BadImageError(ValueError):
    """An image cannot be used; the text is the reason, for the data card."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as it is seen.

    Attributes:
        pixels: `(C, H, W)` uint8.
        plain: whether the file is a JPEG or PNG of 8-bit grey or RGB that needs no turning: then it can be stored as
            it is, and `read_crop` reads it to the same pixels.
        lossy: whether the file is a JPEG.
        changed: what was converted on the way, for example "16 bits a channel".
    """

    pixels: NDArray[np.uint8]
    plain: bool
    lossy: bool
    changed: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[1:]
        return height, width


def decode(data: bytes, channels: int) -> Decoded:
    """Decode a file of any format that Pillow reads; the name of the file plays no part.

    An EXIF rotation is applied. Palettes, CMYK and images with transparency become RGB; transparency is dropped. The
    16 bits of a grey image are divided by 257. Grey images are repeated for three channels, and coloured ones become
    grey (ITU-R 601 luma) for one.

    Args:
        data: the bytes of the file.
        channels: 1 or 3.

    Raises:
        BadImageError: it is no image, cut short, an animation, too large, or has 32 bits a pixel.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, of odd metadata: what matters raises
            with Image.open(io.BytesIO(data)) as picture:
                _refuse_unusual(picture)
                return _decoded(picture, channels, depth=data[24] if picture.format == "PNG" else 8)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("it is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"it has more than {MAX_PIXELS:,} pixels") from error
    # Pillow's readers raise almost anything when a file is damaged.
    except Exception as error:
        raise BadImageError(
            f"it cannot be decoded: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _refuse_unusual(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    # The further pictures of an MPO, as telephones write them, are other views of the first.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise BadImageError(f"it is a sequence of {getattr(picture, 'n_frames', 'several')} images, not one")
    if picture.mode in {"I", "F"}:
        raise BadImageError("it has 32 bits a pixel; only 8 and 16 are understood")


def _decoded(picture: Image.Image, channels: int, depth: int) -> Decoded:
    """Decode an opened file; `depth` is the bits of a channel in a PNG: of 16, Pillow may leave 8 without a word."""
    from PIL import Image, ImageOps

    changed = []
    kept = {"L", MODES[channels]}  # grey is repeated when it is read; the grey of colours differs between decoders
    plain = picture.format in {"JPEG", "PNG"} and depth == 8 and picture.mode in kept
    plain = plain and "transparency" not in picture.info
    lossy = picture.format in {"JPEG", "MPO"}
    if depth > 8 or picture.mode.startswith("I;16"):
        changed.append("16 bits a channel")
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        changed.append("turned as its EXIF data say")
        plain = False
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture, dtype=np.float64) / 257
        picture = Image.fromarray(np.rint(values).astype(np.uint8))
    elif picture.mode not in MODES.values():
        changed.append(f"mode {picture.mode}")
        picture = picture.convert("RGB")
    pixels = np.asarray(picture.convert(MODES[channels]))
    planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(planes), plain, lossy, tuple(changed))


def centre_square(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest square in the middle of an image: top, left, height, width."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def window_in(window: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
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


def fit(pixels: NDArray[np.uint8], side: int, how: Fit) -> NDArray[np.uint8]:
    """Make a `(C, side, side)` image of a `(C, H, W)` one, smoothed beforehand where it shrinks."""
    if how == "centre":
        top, left, height, width = centre_square(*pixels.shape[1:])
        pixels = pixels[:, top : top + height, left : left + width]
    return _resampled(pixels, (side, side))


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


def _resampled(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = size
    resized = np.asarray(_picture(pixels).resize((width, height), Image.Resampling.BILINEAR))
    return resized[None] if resized.ndim == 2 else np.ascontiguousarray(resized.transpose(2, 0, 1))


def encode(pixels: NDArray[np.uint8], lossy: bool) -> bytes:
    """Encode a `(C, H, W)` image as JPEG, or without loss as PNG."""
    file = io.BytesIO()
    if lossy:
        _picture(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        _picture(pixels).save(file, "PNG")
    return file.getvalue()


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def read_crop(data: Any, channels: int, crop: tuple[int, int, int, int], side: int) -> Tensor:
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
    import torch.nn.functional as F
    from torchvision.io import ImageReadMode, decode_image

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    pixels = decode_image(torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()), mode)
    top, left, height, width = crop
    part = pixels[None, :, top : top + height, left : left + width]
    if (height, width) == (side, side):
        return part[0]
    return F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0]
