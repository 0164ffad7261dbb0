"""The test images on which the variants of a classification disagree most, and who says what.

A variant predicts for an image what most of its seeds predict. The more evenly the predictions of all variants fall on
several classes, the more they disagree: the entropy of the predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.card import CARD_FILE
from convatlas.data.decoding import BadImageError
from convatlas.data.prepared import PreparedData, Split
from convatlas.reporting.images import EmbeddedImage, as_rgb, embedded, pixels_of, scaled
from convatlas.reporting.predictions import Predictions
from convatlas.reporting.study import Group
from convatlas.reporting.wording import listed

__all__ = [
    "Disagreements",
    "Disputed",
    "Vote",
    "disagreements",
    "entropies",
    "majorities",
    "same_images",
    "test_split",
]

MOST_IMAGES = 12
MOST_NAMES = 4
"""Variants named behind an answer; more are counted."""
SIDE = 96
"""Of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Vote:
    """A class that some variants predict, with who they are; `right` if it is the image's."""

    title: str
    right: bool
    names: str


@dataclass(frozen=True)
class Disputed:
    """One test image.

    Attributes:
        position: in the test split, from 0.
        title: its class.
        votes: what the variants predict, the most frequent first.
        image: None without the prepared data.
    """

    position: int
    title: str
    votes: tuple[Vote, ...]
    image: EmbeddedImage | None


@dataclass(frozen=True)
class Disagreements:
    """The images that variants disagree on.

    Attributes:
        images: those with the most disagreement, the most first.
        disputed: how many test images do not get one and the same answer of all variants.
        total: how many test images there are.
        variants: how many variants answered.
        without_pictures: why there are no pictures; nothing where there are.
    """

    images: tuple[Disputed, ...]
    disputed: int
    total: int
    variants: int
    without_pictures: str


def disagreements(group: Group) -> Disagreements | None:
    """Find the images that the variants of a group disagree on; None where no two variants named classes.

    Raises:
        UserError: a run's predictions are not readable.
    """
    predictions = group.predictions
    if predictions is None or len(predictions.classes) < 2:
        return None
    majority, votes = majorities(predictions)
    doubt = entropies(majority)
    among_runs = entropies(votes)  # tells apart what is equal among the majorities
    order = np.lexsort((predictions.index, -among_runs.round(9), -doubt.round(9)))
    chosen = [int(place) for place in order[:MOST_IMAGES] if doubt[place] > 0]
    split, reason = test_split(group) if chosen else (None, "")
    if split is not None and not same_images(split, predictions):
        split, reason = None, f"The data prepared for {group.data} are not those of these runs."
    titles = {variant.key: variant.title for variant in group.variants}
    names = [titles[key] for key in predictions.classes]
    images = tuple(_disputed(predictions, place, majority[:, place], names, split) for place in chosen)
    return Disagreements(images, int((doubt > 0).sum()), len(doubt), len(names), reason)


def majorities(predictions: Predictions) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return `(V, N)` the class that most seeds of each variant name, and `(R, N)` the classes that all runs name.

    Of classes that as many seeds name, the one that the first of these seeds names counts.
    """
    votes = [np.stack(list(by_seed.values())) for by_seed in predictions.classes.values()]
    majority = []
    for of_seeds in votes:
        support = (of_seeds[:, None, :] == of_seeds[None, :, :]).sum(axis=1)
        majority.append(np.take_along_axis(of_seeds, support.argmax(axis=0)[None], axis=0)[0])
    return np.stack(majority), np.concatenate(votes)


def entropies(answers: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the entropy, in nats, of each column's answers: `(A, N)` to `(N,)`; 0 where all are the same."""
    rows, columns = answers.shape
    classes = int(answers.max(initial=0)) + 1
    cells, counts = np.unique(answers + classes * np.arange(columns, dtype=np.int64), return_counts=True)
    share = counts / rows
    return np.bincount(cells // classes, -share * np.log(share), minlength=columns).astype(np.float64)


def _disputed(
    predictions: Predictions, place: int, predicted: NDArray[np.int32], names: Sequence[str], split: Split | None
) -> Disputed:
    label, position = int(predictions.labels[place]), int(predictions.index[place])
    classes: Mapping[int, str] = dict(enumerate(split.card.classes)) if split is not None else {}

    def title(number: int) -> str:
        return classes.get(number, f"class {number}")

    votes = []
    for number, support in Counter(predicted.tolist()).most_common():
        who = [name for name, other in zip(names, predicted.tolist(), strict=True) if other == number]
        shown = who if support <= MOST_NAMES else [*who[: MOST_NAMES - 1], f"{support - MOST_NAMES + 1} others"]
        votes.append(Vote(title(number), number == label, listed(shown)))
    image = None if split is None else _image(split, position, f"Test image {position}, of class {title(label)}")
    return Disputed(position, title(label), tuple(votes), image)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_split(group: Group) -> tuple[Split | None, str]:
    """Open the test split that a group was tested on, or say why there is none."""
    folder = next((variant.prepared for variant in group.variants if variant.prepared is not None), None)
    if folder is None or not (folder / CARD_FILE).is_file():
        return None, (
            f"Without the prepared data there are no pictures here; `python -m convatlas.prepare data={group.data}` "
            "writes them."
        )
    try:
        return PreparedData.open(folder).split("test"), ""
    except (UserError, KeyError) as error:
        return None, f"There are no pictures: {error}"


def same_images(split: Split, predictions: Predictions) -> bool:
    """Say whether the labels of a split are those that the runs were tested on."""
    if split.labels is None or not len(predictions.index) or int(predictions.index.max()) >= len(split):
        return False
    return bool(np.array_equal(split.labels[predictions.index], predictions.labels))


def _image(split: Split, position: int, title: str) -> EmbeddedImage | None:
    try:
        image = as_rgb(pixels_of(split, position))
    except BadImageError:
        return None
    return embedded(scaled(image, SIDE / max(image.size)), title)
