"""Images that are the same to the byte, and images that look the same.

Exact copies are kept together by the splits, and leave the training where an official test split has them. Near copies
are found by small grey thumbnails and reported only: a likeness is a hint and no proof, and in some data sets (digits,
slices of one organ) honest images are as alike as the same photograph saved twice in others. Images that were mirrored,
turned or cropped are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convatlas.data.spool import Items

__all__ = ["SIMILARITY", "NearCopies", "digest", "first_copies", "first_of", "near_copies", "thumbnails"]

SIMILARITY = 0.98
"""Correlation of two thumbnails from which on images are near copies. Of CIFAR-10's 42 pairs of a test and a training
image above it all have the same label; of those above 0.95, one in fifteen is of two classes."""
THUMBNAIL = 16
"""Side of a thumbnail in pixels."""
LEAST_CONTRAST = 2.0
"""Standard deviation of a thumbnail, in grey levels of 255, below which there is too little in it to compare."""
_DIRECTIONS = 16  # principal components that the search tree has; more make it slower, fewer make it find too many
_CANDIDATES = 8  # neighbours in the tree that are compared in full


def digest(image: NDArray[np.uint8]) -> bytes:
    """Return 16 bytes that are equal for equal pixels and shapes."""
    shape = ",".join(map(str, image.shape)).encode()
    return hashlib.blake2b(image.tobytes(), digest_size=16, person=shape[:16]).digest()


def first_of(digests: Sequence[Hashable]) -> Items:
    """Name for each digest the first position that has the same: `(N,)`."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(each, item) for item, each in enumerate(digests)], dtype=np.int64)


def first_copies(images: NDArray[np.uint8]) -> Items:
    """Name for each image the first one that is equal to it in every byte, itself where it has no earlier copy.

    Args:
        images: `(N, C, H, W)`.

    Returns:
        `(N,)` positions.
    """
    return first_of([digest(image) for image in images])


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Average images of one size down to grey thumbnails of at most 16 x 16 pixels, stretched to squares.

    Args:
        images: `(N, C, H, W)`.

    Returns:
        `(N, 256)` grey levels from 0 to 255.
    """
    rows, columns = (_averaging(length) for length in images.shape[2:])
    gray = images.mean(axis=1, dtype=np.float32)
    return (rows @ gray @ columns.T).reshape(len(images), -1).astype(np.float16)


def _averaging(length: int) -> NDArray[np.float32]:
    """Return the weights `(16, length)` with which pixels are averaged; each covers the area that it overlaps."""
    edges = np.arange(THUMBNAIL + 1) * (length / THUMBNAIL)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (THUMBNAIL / length)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class NearCopies:
    """Pairs of images that look the same: positions of one and of the other, and their correlation, each `(M,)`."""

    items: Items
    others: Items
    similarity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.items)


def near_copies(thumbs: NDArray[np.float16], items: Items, among: Items) -> NearCopies:
    """Find for each of some images the one among others that looks most like it, if any looks the same.

    The search does not compare all with all: a tree over the directions in which the thumbnails vary most proposes a
    few neighbours. Distances there are never larger than between whole thumbnails, so that the nearest near copy is
    missed only where more than eight other images lie nearer in the tree.

    Args:
        thumbs: `(N, 256)`, of all images.
        items: positions of those to find near copies of.
        among: positions of those to look among; an image is no copy of itself.
    """
    from scipy.spatial import cKDTree

    items, among = (_with_contrast(thumbs, positions) for positions in (items, among))
    if not len(items) or not len(among):
        return NearCopies(items[:0], among[:0], np.zeros(0, dtype=np.float32))
    found, searched = _standardised(thumbs[items]), _standardised(thumbs[among])
    directions = _principal_directions(searched)
    # |a - b|^2 = 2 - 2 correlation for thumbnails of mean 0 and length 1
    reach = float(np.sqrt(2 - 2 * SIMILARITY)) + 1e-3
    neighbours = min(_CANDIDATES + 1, len(among))
    tree = cKDTree(searched @ directions)
    _, near = tree.query(found @ directions, k=list(range(1, neighbours + 1)), distance_upper_bound=reach)
    there = (near < len(among)) & (among[np.minimum(near, len(among) - 1)] != items[:, None])
    similarity = np.full(near.shape, -1.0, dtype=np.float32)
    row, column = np.nonzero(there)
    similarity[row, column] = np.einsum("nd,nd->n", found[row], searched[near[row, column]])
    best = similarity.argmax(axis=1)
    every = np.arange(len(items))
    alike = np.flatnonzero(similarity[every, best] >= SIMILARITY)
    return NearCopies(items[alike], among[near[alike, best[alike]]], similarity[alike, best[alike]])


def _with_contrast(thumbs: NDArray[np.float16], items: Items) -> Items:
    return items[thumbs[items].std(axis=1, dtype=np.float32) >= LEAST_CONTRAST]


def _standardised(thumbs: NDArray[np.float16]) -> NDArray[np.float32]:
    """Bring thumbnails to mean 0 and length 1, so that their products are correlations."""
    values = thumbs.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def _principal_directions(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `(256, 16)` orthonormal columns."""
    centred = values - values.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, -_DIRECTIONS:].astype(np.float32)
