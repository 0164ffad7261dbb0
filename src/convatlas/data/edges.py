"""Edges that segmentation data carry beside their masks: Canny's of the image, and those of the classes as a target.

Both are computed once, when the data are prepared, from pixels as they are stored: the images from 0 to 255, the masks
as class numbers. Nothing of it happens in a net's forward pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANNY_THRESHOLDS", "EDGE_RADIUS", "canny_edges", "edge_targets"]

CANNY_THRESHOLDS = (10, 100)
"""Of the gradient's magnitude, of 3x3 Sobel filters on pixels from 0 to 255, as SAUNet has them."""
EDGE_RADIUS = 2
"""Half the width of the band along the edge of a class, in pixels, as SAUNet has it."""


def canny_edges(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Find the edges of images, without smoothing them first; several channels are averaged.

    scikit-image measures the gradient in the Euclidean norm, where OpenCV, which SAUNet's authors used, adds the two
    directions; the thresholds are the same.

    Args:
        images: `(N, C, H, W)`.

    Returns:
        `(N, H, W)`, 0 or 1.
    """
    from skimage.feature import canny

    low, high = CANNY_THRESHOLDS
    edges = np.zeros((len(images), *images.shape[2:]), dtype=np.uint8)
    for image, found in zip(images, edges, strict=True):
        gray = image[0] if len(image) == 1 else np.rint(image.mean(axis=0)).astype(np.uint8)
        found[:] = canny(gray, sigma=0, low_threshold=low, high_threshold=high, mode="nearest")
    return edges


def edge_targets(masks: NDArray[np.uint8], radius: float = EDGE_RADIUS) -> NDArray[np.uint8]:
    """Mark the pixels that lie within `radius` of the edge of a foreground class, on either side.

    A pixel's distance is that to the nearest pixel on the other side, so that a radius of 2 gives a band of four
    pixels. The border of the image is no edge.

    Args:
        masks: `(N, H, W)` class numbers; 0 is the background, and `IGNORED` has no edges.
        radius: in pixels.

    Returns:
        `(N, H, W)`, 0 or 1: the union over the classes.
    """
    from scipy.ndimage import distance_transform_edt

    from convatlas.data.raw import IGNORED

    targets = np.zeros(masks.shape, dtype=np.uint8)
    for item, mask in enumerate(masks):
        for number in np.unique(mask[(mask > 0) & (mask != IGNORED)]):
            inside = mask == number
            if inside.all():
                continue
            distance = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
            targets[item] |= (distance <= radius) & (mask != IGNORED)
    return targets
