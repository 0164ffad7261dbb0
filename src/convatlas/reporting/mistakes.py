"""Pictures of what tells classifiers apart: the mistakes each is surest of, and images that one of two gets right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convatlas.data.decoding import BadImageError
from convatlas.data.prepared import Split
from convatlas.reporting.charts import REST, colours
from convatlas.reporting.disagreements import majorities, same_images, test_split
from convatlas.reporting.images import EmbeddedImage, as_rgb, embedded, pixels_of, scaled
from convatlas.reporting.paired import reference_of
from convatlas.reporting.study import Group, Variant
from convatlas.reporting.wording import count

__all__ = ["Strip", "apart", "mistakes"]

MOST = 10
"""Pictures of a strip."""
SIDE = 64
"""Of a picture on the page, in pixels."""


@dataclass(frozen=True)
class Strip:
    """Pictures in a row with a line below each.

    Attributes:
        variant: whose they are.
        words: what they have in common.
        pictures: each with what it is and what it was taken for.
    """

    variant: Variant
    words: str
    pictures: tuple[tuple[EmbeddedImage, str], ...]


def mistakes(group: Group) -> list[Strip]:
    """Show the wrong answers of which each variant's median run is surest; of many variants those with a colour.

    None are shown without the prepared data, or where runs kept no probabilities.
    """
    split = _split(group)
    shown = [variant for variant in group.variants if colours(group)[variant.key] != REST]
    return [] if split is None else [strip for variant in shown if (strip := _mistakes(group, variant, split))]


def _mistakes(group: Group, variant: Variant, split: Split) -> Strip | None:
    run = variant.median_run(group.score)
    answers = None if run is None else run.answers
    if run is None or answers is None or not {"label", "prediction", "confidence"} <= set(answers):
        return None
    wrong = np.flatnonzero(answers["label"] != answers["prediction"])
    chosen = wrong[np.argsort(-answers["confidence"][wrong], kind="stable")][:MOST]
    pictures = []
    for place in chosen:
        label, taken = (split.card.classes[answers[name][place]] for name in ("label", "prediction"))
        line = f"{label} → {taken}, {answers['confidence'][place]:.0%}"
        pictures += _picture(split, int(answers["index"][place]), line)
    words = f"{len(wrong)} of {len(answers['label'])} images wrong, seed {run.seed}"
    return Strip(variant, words, tuple(pictures))


def apart(group: Group) -> list[Strip]:
    """Show the images that the best variant gets right and the first one does not, and the other way round.

    A variant gets right what most of its seeds do; images on which more of its seeds agree come first.
    """
    split, reference, best = _split(group), reference_of(group), group.best
    if split is None or reference is None or best is None or best is reference or group.predictions is None:
        return []
    predictions = group.predictions
    if not {best.key, reference.key} <= set(predictions.classes):
        return []
    majority = dict(zip(predictions.classes, majorities(predictions)[0], strict=True))
    right = {key: majority[key] == predictions.labels for key in (best.key, reference.key)}
    strips = []
    for one, other in ((best, reference), (reference, best)):
        places = np.flatnonzero(right[one.key] & ~right[other.key])
        of_seeds = (predictions.classes[variant.key].values() for variant in (one, other))
        sure, unsure = (_support(votes, predictions.labels) for votes in of_seeds)
        pictures = []
        for place in places[np.argsort((unsure - sure)[places], kind="stable")][:MOST]:
            label, taken = predictions.labels[place], majority[other.key][place]
            line = f"{split.card.classes[label]}, not {split.card.classes[taken]}"
            pictures += _picture(split, int(predictions.index[place]), line)
        words = f"{count(len(places), 'image')} that it gets right and {other.title} does not"
        if pictures:
            strips.append(Strip(one, words, tuple(pictures)))
    return strips


def _support(votes: Iterable[NDArray[np.int32]], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the share of the seeds that are right about each image."""
    return np.mean([vote == labels for vote in votes], axis=0)


def _split(group: Group) -> Split | None:
    """Open the test images of a classification; None where they are not there or not those of the runs."""
    if group.predictions is None:
        return None
    split, _ = test_split(group)
    return split if split is not None and same_images(split, group.predictions) else None


def _picture(split: Split, position: int, line: str) -> list[tuple[EmbeddedImage, str]]:
    try:
        image = as_rgb(pixels_of(split, position))
    except BadImageError:
        return []
    return [(embedded(scaled(image, SIDE / max(image.size)), f"Test image {position}: {line}"), line)]
