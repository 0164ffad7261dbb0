"""What a search sees: the training split, cut in two. The files of the other splits are not opened."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convatlas.core.config import DataConfig, Recipe
from convatlas.core.errors import UserError
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import EvaluationBatches, TrainingBatches
from convatlas.data.card import CARD_FILE, Card, remedy
from convatlas.data.prepared import Split, open_split
from convatlas.data.reader import Indices
from convatlas.data.shards import ShardedImages


class SearchData:
    """Both parts of the training split: `weights` trains weights, `held_out` judges and trains architectures.

    Batches are a function of (seed, epoch, batch number), as everywhere in this project.

    Args:
        recipe: its augmentation serves the training batches, except for what changes labels or sizes.
        weights_share: share of the training split in `weights`; classes are divided alike, groups stay whole.

    Raises:
        UserError: the data are not prepared, or too few for two parts.
    """

    def __init__(self, config: DataConfig, recipe: Recipe, weights_share: float, seed: int) -> None:
        if not (config.prepared / CARD_FILE).exists():
            raise UserError(
                f"data={config.name} is not prepared: {config.prepared} has no {CARD_FILE}. {remedy(config.name)}"
            )
        self.config = config
        self.card = Card.read(config.prepared)
        self.card.check(config)
        split = open_split(config.prepared, "train", self.card)
        held_out, weights = _two_parts(split, weights_share, seed)
        self.weights = _subset(split, weights)
        self.held_out = _subset(split, held_out)
        self.augmentation = recipe.augmentation.model_copy(update={"mixup": 0.0, "cutmix": 0.0, "image_sizes": ()})

    def training_batches(
        self, batch_size: int, seed: int, *, part: str = "weights", image_size: int | None = None
    ) -> TrainingBatches:
        """Return shuffled, augmented batches of one part; the item `(epoch, batch)` is a batch."""
        side = image_size or self.config.image_size
        return TrainingBatches(
            getattr(self, part),
            image_size=side,
            batch_size=batch_size,
            augmenter=Augmenter(self.augmentation, self.config.task, side),
            seed=seed,
        )

    def held_out_batches(self, image_size: int | None = None) -> EvaluationBatches:
        """Return the held-out part in order, without augmentation."""
        return EvaluationBatches(self.held_out, image_size=image_size or self.config.image_size, batch_size=256)

    def one_image(self, image_size: int | None = None) -> Tensor:
        side = image_size or self.config.image_size
        return torch.zeros(1, self.config.in_channels, side, side)


def _two_parts(split: Split, weights_share: float, seed: int) -> tuple[Indices, Indices]:
    """Return the positions held out and those that train weights, both ascending."""
    from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

    assert split.labels is not None
    positions = np.zeros((len(split), 1))
    options = {"n_splits": 1, "test_size": 1 - weights_share, "random_state": seed}
    try:
        if split.groups is not None:
            weights, held_out = next(GroupShuffleSplit(**options).split(positions, groups=split.groups))
        else:
            weights, held_out = next(StratifiedShuffleSplit(**options).split(positions, split.labels))
    except ValueError as error:
        raise UserError(
            f"search.weights_share={weights_share}: the {len(split)} training images of {split.card.name} cannot be "
            "cut into two parts with every class in both; choose a share nearer to 0.5, or a larger data set."
        ) from error
    return np.sort(held_out).astype(np.int64), np.sort(weights).astype(np.int64)


def _subset(split: Split, chosen: Indices) -> Split:
    assert split.labels is not None
    images = split.images
    some = _SomeImages(images, chosen) if isinstance(images, ShardedImages) else images[chosen]
    groups = None if split.groups is None else split.groups[chosen]
    return replace(split, images=some, labels=split.labels[chosen], groups=groups)


class _SomeImages(ShardedImages):
    """Some of the images of shards, without copying any."""

    def __init__(self, images: ShardedImages, chosen: Indices) -> None:
        self.images = images
        self.chosen = chosen
        self.sizes = images.sizes[chosen]

    def read(self, item: int) -> Any:
        return self.images.read(int(self.chosen[item]))
