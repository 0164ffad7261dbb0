"""Digit scenes: real handwritten digits on noisy grey backgrounds, with exact boxes. A made set for detection.

The digits are the 1,797 pictures of 8 x 8 pixels inside scikit-learn (UCI "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998). The scenes are made here: their places, sizes, greys and noise never met a camera.

Honest splits: the digits are dealt into pools first, and each scene takes its digits from one pool. The last pools make
the official test split and the number of its pool is a scene's group, so that no digit is ever in two splits.

Three levels of difficulty differ in number, sizes and contrast of the digits, in how near they come to each other, in
noise, and in clutter: quarters of further digits, which are no objects. Such clutter is from Mnih, Heess, Graves,
Kavukcuoglu, "Recurrent Models of Visual Attention" (NIPS 2014), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from convatlas.core.errors import UserError
from convatlas.data.raw import RawDataset

__all__ = ["LEVELS", "Level", "Scene", "deal_into_pools", "draw_scene", "enlarge", "load"]

POOLS = 25
MOST_SCENES = 1_000_000
TEST_POOLS = 5
PLACES_TRIED = 40
VISIBLE_INK = 0.35
"""Fainter ink than this share of the darkest is not painted: what is painted is what can be seen."""


@dataclass(frozen=True)
class Level:
    """How difficult the scenes are.

    Attributes:
        digits: least and greatest number of digits; those that find no place are left away.
        sizes: side of a digit's picture as a share of the scene's side, before its empty border is left out.
        overlap: most that two boxes may share, as a fraction of the smaller one; no ink covers another.
        contrast: least difference of full ink from the background, in grey levels of 255, at most 120.
        noise: standard deviation of the noise, in grey levels.
        clutter: greatest number of quarters of digits; none lies in a digit's box.
        smallest: side of a scene, in pixels, in which the smallest digits still have about their 8 pixels.
    """

    digits: tuple[int, int]
    sizes: tuple[float, float]
    overlap: float
    contrast: float
    noise: float
    clutter: int
    smallest: int


LEVELS = {
    "easy": Level((1, 3), (0.28, 0.42), overlap=0.0, contrast=110, noise=5.0, clutter=0, smallest=32),
    "medium": Level((1, 6), (0.16, 0.42), overlap=0.1, contrast=70, noise=10.0, clutter=0, smallest=48),
    "hard": Level((3, 10), (0.12, 0.36), overlap=0.3, contrast=45, noise=15.0, clutter=8, smallest=64),
}

Ink = NDArray[np.float32]
"""`(height, width)`, from 0 (none) to 1 (full)."""
Box = tuple[int, int, int, int]


@dataclass
class Scene:
    """One scene.

    Attributes:
        image: `(side, side)` uint8.
        boxes: `(objects, 4)` float32: `x1, y1, x2, y2`; the first column and row with ink, and those after the last.
        digits: `(objects,)` int64, the rows of the pictures that were pasted, in the order of the boxes.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    digits: NDArray[np.int64]


def load(
    root: Path,  # noqa: ARG001 - every source takes `root`; this one needs no files
    *,
    scenes: int = 1500,
    test_scenes: int | None = None,
    image_size: int = 96,
    level: str = "medium",
    noise: float | None = None,
    seed: int = 0,
) -> RawDataset:
    """Make the scenes; the same arguments make the same bytes.

    Args:
        root: not read, nothing is written there: the digits come with scikit-learn.
        scenes: number of scenes, spread evenly over 25 pools of digits; the last 5 pools are the test split.
        test_scenes: how many of them are in the test split, spread evenly over its 5 pools; null: one in five.
        image_size: side of a scene in pixels; 32, 48 or 64 or more, by level.
        level: "easy", "medium" or "hard".
        noise: standard deviation of the noise, in grey levels of 255; 0 makes each background one flat grey; null takes
            the level's own.
        seed: decides pools and scenes. A scene depends on its number too, so that more scenes leave the first as is.

    Raises:
        UserError: fewer scenes than pools, for test or training, an unknown level, or too small an `image_size`.
    """
    if scenes < POOLS:
        raise UserError(f"data.source.scenes={scenes} leaves pools of digits empty; use {POOLS} or more.")
    if test_scenes is not None and not TEST_POOLS <= test_scenes <= scenes - (POOLS - TEST_POOLS):
        raise UserError(
            f"data.source.test_scenes={test_scenes} leaves pools of digits empty; of {scenes} scenes use {TEST_POOLS} "
            f"to {scenes - (POOLS - TEST_POOLS)} for the test."
        )
    if scenes > MOST_SCENES or seed < 0:
        raise UserError(f"data.source: use at most {MOST_SCENES:,} scenes ({scenes}), and a seed from 0 ({seed}).")
    if level not in LEVELS:
        raise UserError(f"data.source.level={level} is not known; use one of {', '.join(LEVELS)}.")
    if image_size < LEVELS[level].smallest:
        raise UserError(
            f"data.source.image_size={image_size} makes digits smaller than their 8 pixels; with level={level} use "
            f"{LEVELS[level].smallest} or more."
        )
    from sklearn.datasets import load_digits

    source = load_digits()
    pictures, labels = (source.images / 16).astype(np.float32), source.target.astype(np.int64)
    pools = deal_into_pools(labels, POOLS, seed)
    groups = pools_of_scenes(scenes, test_scenes)
    made = [
        draw_scene(
            pictures,
            np.flatnonzero(pools == pool),
            image_size,
            LEVELS[level].noise if noise is None else noise,
            np.random.default_rng([seed, number]),
            LEVELS[level],
        )
        for number, pool in enumerate(groups)
    ]
    return RawDataset(
        images=np.stack([scene.image for scene in made])[:, None],
        classes=["background", *map(str, range(10))],
        title="Digit scenes",
        origin="Made by convatlas from the 1,797 real digits that ship inside scikit-learn (UCI Optical Recognition of "
        "Handwritten Digits, Alpaydin and Kaynak 1998)",
        licence="digits: CC BY 4.0 (UCI Machine Learning Repository); scenes: as convatlas",
        made=True,
        boxes=[scene.boxes for scene in made],
        box_labels=[labels[scene.digits] + 1 for scene in made],
        groups=groups,
        official_split=np.where(groups >= POOLS - TEST_POOLS, "test", "train"),
        notes=[
            "The scenes are made: real digits, pasted by a program at random places and sizes on made backgrounds.",
            "A box is the extent of the digit's painted pixels; no ink covers another.",
            "A digit occurs in scenes of its own pool only, and a pool lies in one split.",
            "A writer may occur in several splits, since the source does not say who wrote what.",
            *(["Up to 8 quarters of digits lie about, which are no objects."] if LEVELS[level].clutter else []),
        ],
    )


def pools_of_scenes(scenes: int, test_scenes: int | None) -> NDArray[np.int64]:
    """Return the pool of each scene: one after the other, or those of the training first and then those of the test."""
    if test_scenes is None:
        return np.arange(scenes, dtype=np.int64) % POOLS
    training = POOLS - TEST_POOLS
    return np.concatenate([np.arange(scenes - test_scenes) % training, training + np.arange(test_scenes) % TEST_POOLS])


def deal_into_pools(labels: NDArray[np.int64], pools: int, seed: int) -> NDArray[np.int64]:
    """Give each digit a pool: `(N,)` from 0 to `pools` - 1. Pools differ by one digit of a class at most."""
    generator = np.random.default_rng(seed)
    dealt = np.empty(len(labels), dtype=np.int64)
    first = 0
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        dealt[members] = (first + np.arange(len(members))) % pools
        first += len(members)  # go on where the last class ended, so that pools are of one size as well
    return dealt


def draw_scene(  # noqa: PLR0917 - what is drawn from, then how
    pictures: NDArray[np.float32],
    digits: NDArray[np.int64],
    side: int,
    noise: float,
    generator: Generator,
    level: Level = LEVELS["medium"],
) -> Scene:
    """Draw some of the given digits on a background of their own.

    Args:
        pictures: `(N, 8, 8)`, ink from 0 to 1.
        digits: rows of `pictures` that may be used, as many as a scene has at most or more; each is used once at most.
        side: of the scene, in pixels.
        noise: standard deviation in grey levels.
        generator: draws everything.
        level: how difficult the scene is; its noise is not used.
    """
    background = float(generator.uniform(60, 195))
    canvas = np.full((side, side), background, dtype=np.float32)
    inked = np.zeros((side, side), dtype=bool)
    boxes: list[Box] = []
    pasted: list[int] = []

    def paste(ink: Ink, most_overlap: float) -> Box | None:
        box = find_place(ink, inked, boxes, generator, most_overlap)
        if box is not None:
            x1, y1, x2, y2 = box
            canvas[y1:y2, x1:x2] += ink * (ink_grey(background, level.contrast, generator) - background)
            inked[y1:y2, x1:x2] |= ink > 0
        return box

    for digit in generator.choice(digits, size=generator.integers(*level.digits, endpoint=True), replace=False):
        box = paste(enlarge(pictures[digit], round(side * generator.uniform(*level.sizes))), level.overlap)
        if box is not None:
            boxes.append(box)
            pasted.append(int(digit))
    if level.clutter:
        for digit in generator.choice(digits, size=generator.integers(level.clutter, endpoint=True)):
            paste(quarter(enlarge(pictures[digit], round(side * generator.uniform(*level.sizes))), generator), 0.0)
    if noise > 0:
        canvas += uneven_light(side, generator) + generator.normal(0, noise, canvas.shape).astype(np.float32)
    return Scene(
        image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        digits=np.array(pasted, dtype=np.int64),
    )


def enlarge(picture: Ink, side: int) -> Ink:
    """Enlarge an 8 x 8 picture to `side` pixels by cubic interpolation, drop faint ink and cut off the empty border."""
    padded = np.pad(picture, 1)  # strokes at the picture's edge end softly instead of being cut
    steps = (np.arange(side) + 0.5) * len(picture) / side + 0.5
    ink = ndimage.map_coordinates(padded, np.meshgrid(steps, steps, indexing="ij"), order=3, mode="nearest")
    ink = np.where(ink < VISIBLE_INK, 0, np.clip(ink, 0, 1)).astype(np.float32)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def quarter(ink: Ink, generator: Generator) -> Ink:
    """Return one of the four quarters of a digit's ink."""
    height, width = ink.shape
    lower, right = generator.integers(2, size=2)
    return ink[lower * (height // 2) :, right * (width // 2) :][: -(-height // 2), : -(-width // 2)]


def find_place(
    ink: Ink, inked: NDArray[np.bool_], boxes: list[Box], generator: Generator, most_overlap: float
) -> Box | None:
    """Return a box for this ink where it covers no other and boxes overlap little; None if no try found one."""
    height, width = ink.shape
    last_x, last_y = inked.shape[1] - width, inked.shape[0] - height
    for _ in range(PLACES_TRIED):
        x, y = int(generator.integers(last_x, endpoint=True)), int(generator.integers(last_y, endpoint=True))
        box = (x, y, x + width, y + height)
        covers = inked[y : y + height, x : x + width] & (ink > 0)
        if not covers.any() and all(overlap(box, other) <= most_overlap for other in boxes):
            return box
    return None


def overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share as a fraction of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, width) * max(0, height) / smaller


def ink_grey(background: float, contrast: float, generator: Generator) -> float:
    """Draw the grey of full ink, darker or lighter than the background by `contrast` or more."""
    darker, lighter = background - contrast, 255 - background - contrast
    drawn = float(generator.uniform(-max(0.0, darker), max(0.0, lighter)))
    return background + drawn + (contrast if drawn >= 0 else -contrast)


def uneven_light(side: int, generator: Generator) -> NDArray[np.float32]:
    """Draw a smooth field of about 12 grey levels: a 4 x 4 grid of random values, interpolated."""
    coarse = generator.normal(0, 12, (4, 4))
    steps = np.linspace(0, 3, side)
    field = ndimage.map_coordinates(coarse, np.meshgrid(steps, steps, indexing="ij"), order=3, mode="nearest")
    return field.astype(np.float32)
