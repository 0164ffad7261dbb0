"""Image files decoded and encoded: the one reader of preparation and prediction.

Pillow reads whatever a raw folder may hold and checks it. A new image is read as those of a data set were by
`decode_image`, which takes its data card; `convatlas.data.squares` then brings it to the size that nets get.
`convatlas.data.served` takes copies of both files along to where convatlas is not; on their own they import nothing of
it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

    from convatlas.data.card import Card

__all__ = [
    "MAX_PIXELS",
    "MODES",
    "BadImageError",
    "Decoded",
    "Spacing",
    "as_picture",
    "decode",
    "decode_colours",
    "decode_image",
    "decode_labels",
    "encode",
    "one_colour",
    "stretched",
    "upright_size",
]

Spacing: TypeAlias = tuple[float, float]
"""Millimetres from row to row and from column to column."""

MAX_PIXELS = 100_000_000
"""More pixels than any camera's; a file that claims more is taken for a decompression bomb and not decoded."""
JPEG_QUALITY = 95
"""Of images that are stored smaller than they came."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of 8-bit images, by channels."""
PERCENTILES = (0.5, 99.5)
"""Of an image's values that become black and white: a few pixels of blood or noise must not darken the rest."""
_ORIENTATION = 0x0112  # the number of the EXIF entry
_DEEP = ("I", "F")  # modes of 16 and 32 bits: I;16, I;16B, I, F


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
        spacing: millimetres from row to row and from column to column, where the file tells them.
    """

    pixels: NDArray[np.uint8]
    plain: bool
    lossy: bool
    changed: tuple[str, ...]
    spacing: Spacing | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[1:]
        return height, width


# ---- files ----------------------------------------------------------------------------------------------------------


def decode(
    data: bytes, channels: int, *, percentiles: bool = False, declared: tuple[int, int] | None = None
) -> Decoded:
    """Decode a file of any format that Pillow reads; the name of the file plays no part.

    An EXIF rotation is applied. Palettes, CMYK and images with transparency become RGB; transparency is dropped. Grey
    images are repeated for three channels, and coloured ones become grey (ITU-R 601 luma) for one.

    Args:
        data: the bytes of the file.
        channels: 1 or 3.
        percentiles: whether grey images of 16 or 32 bits are stretched between their `PERCENTILES`; otherwise 16 bits
            are divided by 257, and 32 bits, which have no white of their own, are refused.
        declared: width and height as an annotation has them. An image that has them only before its EXIF rotation is
            not rotated: its boxes were drawn on the pixels as stored.

    Raises:
        BadImageError: it is no image, cut short, an animation or of several pages, too large, or has 32 bits a pixel.
    """
    from PIL import Image

    with _opened(data) as picture:
        # Pillow scales a PGM of more than 8 bits to 0..65535, in its mode of 32.
        bits = 32 if picture.mode in _DEEP and not (picture.mode == "I" and picture.format == "PPM") else 16
        if bits == 32 and not percentiles:
            raise BadImageError("it has 32 bits a pixel; only 8 and 16 are understood")
        changed = []
        # Of the 16 bits of a PNG in colours Pillow keeps 8 without a word.
        depth = data[24] if picture.format == "PNG" else 8
        kept = {"L", MODES[channels]}  # grey is repeated when it is read; the grey of colours differs between decoders
        plain = picture.format in {"JPEG", "PNG"} and depth == 8 and picture.mode in kept
        plain = plain and "transparency" not in picture.info
        lossy = picture.format in {"JPEG", "MPO"}
        if depth > 8 or picture.mode.startswith(_DEEP):
            changed.append(f"{bits} bits a channel")
        turned = _upright(picture, declared)
        if turned is not picture:
            changed.append("turned as its EXIF data say")
            plain = False
        if turned.mode.startswith(_DEEP):
            values = np.asarray(turned, dtype=np.float64)
            if not np.isfinite(values).all():
                raise BadImageError("it has values that are no numbers")
            turned = Image.fromarray(stretched(values) if percentiles else np.rint(values / 257).astype(np.uint8))
        elif turned.mode not in MODES.values():
            changed.append(f"mode {turned.mode}")
            turned = turned.convert("RGB")
        pixels = np.asarray(turned.convert(MODES[channels]))
        planes = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        return Decoded(np.ascontiguousarray(planes), plain, lossy, tuple(changed))


def decode_labels(data: bytes) -> NDArray[Any]:
    """Decode a file of class numbers or grey levels, `(H, W)`: numbers of a palette as they are, 1 bit as 0 and 1.

    Greys that are stored as opaque colours, as most programs save them, are taken as greys.

    Raises:
        BadImageError: as `decode`, or its channels differ.
    """
    with _opened(data) as picture:
        upright = _upright(picture, None)
        labels, has_alpha = np.asarray(upright), upright.mode.endswith("A")
    if labels.ndim == 3:
        colours = labels[..., : labels.shape[2] - has_alpha]
        if (has_alpha and (labels[..., -1] != 255).any()) or (colours != colours[..., :1]).any():
            raise BadImageError(f"it has {labels.shape[2]} channels that differ, not 1")
        labels = colours[..., 0]
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else labels


def decode_colours(data: bytes) -> NDArray[np.uint8]:
    """Decode a file whose colours mean something, `(H, W, 3)`; raises BadImageError as `decode`."""
    with _opened(data) as picture:
        return np.asarray(_upright(picture, None).convert("RGB"))


def decode_image(path: Path, card: Card) -> Decoded:
    """Decode a new image as the preparation decoded those of a data set.

    Raises:
        BadImageError: it cannot be used; the text is the end of a sentence about the file.
    """
    from convatlas.data.archives import file_bytes

    try:
        data = file_bytes(path)
    except OSError as error:
        raise BadImageError(f"the file cannot be read: {error.strerror or error}") from error
    return decode(data, card.image_shape[0], percentiles=card.percentiles)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image as it is seen, after its EXIF rotation; its pixels are not decoded.

    Raises:
        BadImageError: it is no image.
    """
    with _opened(data) as picture:
        width, height = picture.size
        return (height, width) if picture.getexif().get(_ORIENTATION, 1) in range(5, 9) else (width, height)


def one_colour(pixels: NDArray[np.uint8]) -> str:
    """Return the reason to leave out an image `(C, H, W)` each of whose channels has one value only, or ""."""
    values = pixels.reshape(len(pixels), -1)
    if (values != values[:, :1]).any():
        return ""
    found = np.unique(values[:, 0]).tolist()
    return f"every pixel has the value {found[0]}" if len(found) == 1 else "every pixel has the same colour"


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a file and check what it claims; whatever its decoder raises then becomes a `BadImageError`."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, of odd metadata: what matters raises
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise BadImageError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
                # The further images of an MPO, as telephones write them, are other views of the first.
                if getattr(picture, "is_animated", False) and picture.format != "MPO":
                    raise BadImageError(
                        f"it is a sequence of {getattr(picture, 'n_frames', 'several')} images, not one"
                    )
                yield picture
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


def _upright(picture: Image.Image, declared: tuple[int, int] | None) -> Image.Image:
    """Apply the EXIF rotation; an image without one is returned itself."""
    from PIL import ImageOps

    if picture.getexif().get(_ORIENTATION, 1) not in range(2, 9):
        return picture
    turned = ImageOps.exif_transpose(picture)
    return picture if picture.size == declared != turned.size else turned


def stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Bring values of any range to 0..255, their 0.5th percentile to black and their 99.5th to white."""
    values = values.astype(np.float64)
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], lossy: bool) -> bytes:
    """Encode a `(C, H, W)` image as JPEG, or without loss as PNG."""
    file = io.BytesIO()
    if lossy:
        as_picture(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    else:
        as_picture(pixels).save(file, "PNG")
    return file.getvalue()


def as_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return a `(C, H, W)` image as Pillow has it."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
