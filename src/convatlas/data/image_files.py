"""Images left in their files: what a source returns when they are too large, or of too many sizes, for one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageFiles"]


class ImageFiles:
    """Images in files that stay where they are; nothing is read or decoded before it is asked for.

    What the files hold need not be right: the verification decodes each of them and lists in the data card those that
    are no images. Data of this kind are prepared with `data.storage=shards`, or, resized, with `data.storage=arrays`.

    Args:
        paths: one file an image, JPEG, PNG or another format that Pillow reads, of any size.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, items: NDArray[np.int64]) -> ImageFiles:
        """Return the images at these positions alone, in this order."""
        return ImageFiles([self.paths[item] for item in items])

    def read(self, item: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            OSError: it cannot be read.
        """
        return self.paths[item].read_bytes()
