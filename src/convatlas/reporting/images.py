"""Images inside a page, as `data:` URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convatlas.data.decoding import decode
from convatlas.data.prepared import Split
from convatlas.data.shards import ShardedImages


def data_uri(content: bytes, media_type: str) -> str:
    """Return a file as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page: its `data:` URI, its size in pixels, and what it shows."""

    uri: str
    width: int
    height: int
    title: str


def embedded(image: Image.Image, title: str, quality: int = 80) -> EmbeddedImage:
    """Encode an image as WebP."""
    encoded = io.BytesIO()
    image.save(encoded, "webp", quality=quality, method=2)
    return EmbeddedImage(data_uri(encoded.getvalue(), "image/webp"), *image.size, title)


def pixels_of(split: Split, item: int) -> NDArray[np.uint8]:
    """Return an image of a split, `(C, H, W)`.

    Raises:
        BadImageError: it is stored as a file that cannot be decoded.
    """
    if isinstance(split.images, ShardedImages):
        return decode(split.images.read(item).to_pybytes(), split.card.image_shape[0]).pixels
    return split.images[item]


def as_rgb(pixels: NDArray[np.uint8]) -> Image.Image:
    """Turn `(C, H, W)` into an image; of any channels but three the first is shown as grey."""
    shown = pixels if len(pixels) == 3 else pixels[:1].repeat(3, axis=0)
    return Image.fromarray(np.ascontiguousarray(shown.transpose(1, 2, 0)))


def scaled(image: Image.Image, factor: float, max_width: int = 10**6) -> Image.Image:
    """Scale an image; a small one is enlarged without smoothing."""
    size = (max(1, min(max_width, round(image.width * factor))), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR)
