"""Batches that are a function of (seed, epoch, batch number) and of nothing else.

A loader that holds no state needs none restored: a training that was killed asks for the next batch and gets the same
bits, with any number of workers. One item of these data sets is a whole batch; one gather from a memory-mapped array
and a few whole-batch operations make it, many times faster than one image at a time.

All processes of a training draw for the whole batch and take every `world_size`-th image of it, so that the images of a
step do not depend on how many processes share it.

A batch is a dictionary. B is the share of one process, S the image size (in multi-scale training that of the batch).

- all tasks: `images` float32 `(B, C, S, S)`, normalised with the training split's mean and standard deviation, except
  in detection, where they are in [0, 1], because torchvision's detectors normalise; `indices` int64 `(B,)`, positions
  in the split
- classification: `labels` int64 `(B,)`; where images are mixed, in training, `partner_labels` int64 `(B,)` of what
  each is mixed with, and `label_shares` float32 `(B,)`, how much of an image is its own
- segmentation: `masks` int64 `(B, S, S)`, -100 where nobody marked what is there, as torch's losses have it; `edges`
  float32 `(B, 1, S, S)`, 1 along the edges of the classes; where the size of pixels is known, in evaluation, `spacing`
  float32 `(B, 2)`, millimetres from row to row and from column to column. If nets get the Canny edges, they are the
  last channel of the images, from 0 to 1, and not normalised.
- detection: `targets`, B dictionaries of `boxes` float32 `(n, 4)`, `x1, y1, x2, y2` in pixels of S, and `labels` int64
  `(n,)`
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from convatlas.core.errors import UserError
from convatlas.data.augmentation import Augmenter, Changes
from convatlas.data.prepared import Split
from convatlas.data.reader import Batch, Indices, Reader
from convatlas.data.resident import PixelArrays

__all__ = ["Batch", "EpochSampler", "EvaluationBatches", "StatelessLoader", "TrainingBatches", "permutation"]

ORDER, AUGMENTATION = 0, 1  # two independent streams of random numbers


class TrainingBatches(Dataset[Batch]):
    """Shuffled, augmented batches; the item `(epoch, batch)` is one process's share of that batch.

    Every image comes at most once an epoch: an incomplete last batch is left out. Of a split smaller than one batch,
    the whole is the one batch, shortened to a multiple of `world_size`.

    Args:
        split: the training split.
        image_size: side of the images a net gets.
        batch_size: images of a batch over all processes, a multiple of `world_size`.
        augmenter: for images of `image_size`; what it has to know of the training images it learns here.
        seed: decides order and augmentation.
        canny: put the Canny edges behind the images' channels.
        rank: number of this process.
        world_size: number of processes.
        arrays: where pixels are gathered and changed; None takes the mapped files.

    Raises:
        ValueError: `batch_size` is not a multiple of `world_size`.
        UserError: there are fewer images than processes.
    """

    def __init__(
        self,
        split: Split,
        *,
        image_size: int,
        batch_size: int,
        augmenter: Augmenter,
        seed: int,
        canny: bool = False,
        rank: int = 0,
        world_size: int = 1,
        arrays: PixelArrays | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"recipe.batch_size={batch_size} is the batch over all devices; it must be a multiple of {world_size}."
            )
        _refuse_more_processes_than_images(split, world_size)
        self.reader = Reader(split, image_size, canny, arrays)
        self.batch_size = batch_size if len(split) >= batch_size else len(split) // world_size * world_size
        self.augmenter = augmenter.for_images(self.reader.sample())
        self.seed = seed
        self.share = slice(rank, None, world_size)
        self._order: tuple[int, Indices] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.reader.split) // self.batch_size

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        epoch, batch = position
        first = batch * self.batch_size
        indices = self._order_of(epoch)[first : first + self.batch_size]
        changes = self.augmenter.draw(len(indices), _generator(self.seed, epoch, batch))
        if changes.mixes:
            return self._mixed(indices, changes)
        return self.reader.read(indices[self.share], changes[self.share])

    def _mixed(self, indices: Indices, changes: Changes) -> Batch:
        """Read the images of the share and their partners, who may belong to other processes, each of them once."""
        mine = changes[self.share]
        own = np.arange(len(indices))[self.share]
        needed, places = np.unique(np.concatenate([own, mine.partner.numpy()]), return_inverse=True)
        read = self.reader.read(indices[needed], changes[torch.from_numpy(needed)])
        first, second = torch.from_numpy(places).chunk(2)
        pixels: Tensor = read["images"]
        images, shares = mine.mixed(pixels[first.to(pixels.device)], pixels[second.to(pixels.device)])
        labels = {"labels": read["labels"][first], "partner_labels": read["labels"][second], "label_shares": shares}
        return {"images": images, "indices": read["indices"][first], **labels}

    def _order_of(self, epoch: int) -> Indices:
        """Remember the latest epoch's order: it is the same for all of its batches."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(len(self.reader.split), self.seed, epoch)
        return self._order[1]


class EvaluationBatches(Dataset[Batch]):
    """A split in order, without augmentation; the item `batch` is one process's batch of that number.

    Every process has one stretch of the split, and all have the same number of batches, none of them empty; over all
    processes each image comes exactly once. The sizes of batches differ by one at most within a process.

    Args:
        split: the split.
        image_size: side of the images a net gets.
        batch_size: images of a batch over all processes, at most (more only where there are hardly more images than
            processes).
        canny: put the Canny edges behind the images' channels.
        rank: number of this process.
        world_size: number of processes.
        arrays: where pixels are gathered; None takes the mapped files.
        crop: the share of the shorter side that is seen, in the middle.

    Raises:
        UserError: there are fewer images than processes.
    """

    def __init__(
        self,
        split: Split,
        *,
        image_size: int,
        batch_size: int,
        canny: bool = False,
        rank: int = 0,
        world_size: int = 1,
        arrays: PixelArrays | None = None,
        crop: float = 1.0,
    ) -> None:
        _refuse_more_processes_than_images(split, world_size)
        self.reader = Reader(split, image_size, canny, arrays, crop)
        smallest, largest = len(split) // world_size, math.ceil(len(split) / world_size)
        batches = min(math.ceil(largest / max(1, batch_size // world_size)), smallest)
        stretch = np.array_split(np.arange(len(split)), world_size)[rank]
        self.parts = np.array_split(stretch, batches)

    def __len__(self) -> int:
        """Batches of a process."""
        return len(self.parts)

    def __getitem__(self, batch: int) -> Batch:
        return self.reader.read(self.parts[batch])


class EpochSampler(Sampler[tuple[int, int]]):
    """The positions `(epoch, batch)` of one epoch after the other.

    Lightning calls `set_epoch` before each. Its length is always that of a full epoch, also where the first one after
    resuming begins at `start_batch`: Lightning counts the batches that came before by itself.

    Args:
        batches: of an epoch.

    Attributes:
        start_batch: number of the first batch, for the next epoch that is begun and not for later ones. A number that
            is not below `batches` says that the epoch was complete, and that the next begins with its first batch.
    """

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.batches = batches
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, self.start_batch = self.start_batch, 0
        for batch in range(first if first < self.batches else 0, self.batches):
            yield self.epoch, batch


class StatelessLoader(DataLoader[Batch]):
    """A DataLoader over whole batches that begins when its first batch is asked for, and that has no state.

    Begins late: Lightning makes the first iterator before it restores a checkpoint and before it calls `set_epoch`;
    workers that start right away would then fetch from the wrong epoch.

    No state: Lightning warns when a training resumes within an epoch, except from loaders that save and restore theirs.
    Here the position is Lightning's own, and order and augmentation follow from it.

    Its own generator, because every new iterator takes a number from torch's global one, and a resumed training makes
    another number of iterators than one that was never interrupted.

    Args:
        dataset: items are batches.
        sampler: positions in the data set; None takes all in order.
        workers: processes that make batches; 0 makes them in this one.
        pin_memory: put batches where a GPU can fetch them.
    """

    def __init__(
        self, dataset: Dataset[Batch], sampler: Sampler | range | None, workers: int, pin_memory: bool = False
    ) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is nothing to restore."""


def permutation(images: int, seed: int, epoch: int) -> Indices:
    """Return the order of a split's images in an epoch."""
    stream = np.random.SeedSequence((seed, epoch), spawn_key=(ORDER,))
    return np.random.default_rng(stream).permutation(images)


def _generator(seed: int, epoch: int, batch: int) -> torch.Generator:
    stream = np.random.SeedSequence((seed, epoch, batch), spawn_key=(AUGMENTATION,))
    return torch.Generator().manual_seed(int(stream.generate_state(1, np.uint64)[0]))


def _refuse_more_processes_than_images(split: Split, world_size: int) -> None:
    if len(split) < world_size:
        raise UserError(
            f"trainer.devices: {world_size} processes are more than the {len(split)} images in the {split.name} split "
            f"of {split.card.name}; use fewer."
        )
