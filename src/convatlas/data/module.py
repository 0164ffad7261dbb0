"""The prepared data as Lightning wants them.

Use it with `Trainer(use_distributed_sampler=False)`: the batches are divided among the processes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from convatlas.core.config import DataConfig, Recipe
from convatlas.data.augmentation import Augmenter
from convatlas.data.batches import Batch, EpochSampler, EvaluationBatches, StatelessLoader, TrainingBatches
from convatlas.data.prepared import PreparedData, Split
from convatlas.data.resident import MappedArrays, PixelArrays, Resident, ResidentArrays, arrays_for

__all__ = ["DataModule", "batches_done"]


class DataModule(pl.LightningDataModule):
    """Loaders of the three splits; see `convatlas.data.batches` for what a batch holds.

    Args:
        prepared: the data set.
        config: `conf/data`; it must agree with what was prepared.
        recipe: batch sizes and augmentation.
        workers: processes that make the batches of a loader; 0 makes them in the training process, and so does a data
            set in a device's memory.
        limit_batches: stop each epoch of training, validation and test after so many batches.
        seed: decides order and augmentation.
        resident: keep the pixels in the memory of the trainer's device and make batches there; "auto" does so for
            small data sets on a GPU.

    Attributes:
        start_batch: to resume within an epoch, set it before `Trainer.fit`; `batches_done` reads it from a checkpoint.
            Batches before it are not made.

    Raises:
        UserError: the prepared data are not those of the configuration.
        UserError: the task does not allow an augmentation.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: DataConfig,
        recipe: Recipe,
        *,
        workers: int,
        limit_batches: int | None,
        seed: int,
        resident: Resident = "auto",
    ) -> None:
        super().__init__()
        prepared.card.check(config)
        self.prepared = prepared
        self.image_size = config.image_size
        self.canny = prepared.card.has_canny(config)
        self.recipe = recipe
        self.augmenter = Augmenter(recipe.augmentation, config.task, config.image_size, prepared.card.image_shape[0])
        self.workers = workers
        self.limit_batches = limit_batches
        self.seed = seed
        self.resident = resident
        self.start_batch = 0
        self._arrays: PixelArrays | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Training steps of an epoch; it does not depend on the number of processes unless the split is tiny."""
        return self._limited(len(self._training_batches()))

    @property
    def training_split(self) -> Split:
        """The images that are trained on: those of validation, too, where the recipe tests the last epoch."""
        return self.prepared.split("train" if self.recipe.protocol == "best_epoch" else "train+validation")

    def train_dataloader(self) -> StatelessLoader:
        """Return the loader of shuffled, augmented training batches; it begins at `start_batch`."""
        batches = self._training_batches()
        sampler = EpochSampler(self._limited(len(batches)))
        sampler.start_batch = self.start_batch
        return self._loader(batches, sampler)

    def val_dataloader(self) -> StatelessLoader:
        """Return the loader of the validation split, in order."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> StatelessLoader:
        """Return the loader of the test split, in order."""
        return self._evaluation_loader("test")

    def sample_batch(self, tested: Sequence[int], images: int = 16) -> Batch:
        """Return a few of the tested images, spread evenly over them, for pictures."""
        split = self.prepared.split("test")
        batches = EvaluationBatches(
            split, image_size=self.image_size, batch_size=len(split), canny=self.canny, crop=self.recipe.test_crop
        )
        chosen = np.linspace(0, len(tested) - 1, min(images, len(tested))).astype(np.int64)
        return batches.reader.read(np.asarray(tested, dtype=np.int64)[chosen])

    def training_sample(self, images: int = 16) -> Tensor:
        """Return the first images of the first training batch, augmented as they were: `(N, C, H, W)`."""
        first: Tensor = self._training_batches()[0, 0]["images"][:images]
        return first

    def _training_batches(self) -> TrainingBatches:
        rank, world_size = self._place()
        return TrainingBatches(
            self.training_split,
            image_size=self.image_size,
            batch_size=self.recipe.batch_size,
            augmenter=self.augmenter,
            seed=self.seed,
            canny=self.canny,
            rank=rank,
            world_size=world_size,
            arrays=self._pixel_arrays(),
        )

    def _evaluation_loader(self, split: str) -> StatelessLoader:
        rank, world_size = self._place()
        batches = EvaluationBatches(
            self.prepared.split(split),
            image_size=self.image_size,
            batch_size=self.recipe.evaluation_batch_size,
            canny=self.canny,
            rank=rank,
            world_size=world_size,
            arrays=self._pixel_arrays(),
            crop=self.recipe.test_crop,
        )
        return self._loader(batches, range(self._limited(len(batches))))

    def _loader(self, batches: TrainingBatches | EvaluationBatches, sampler: EpochSampler | range) -> StatelessLoader:
        if isinstance(batches.reader.arrays, ResidentArrays):
            return StatelessLoader(batches, sampler, workers=0)
        return StatelessLoader(batches, sampler, self.workers, pin_memory=self._device().type == "cuda")

    def _pixel_arrays(self) -> PixelArrays:
        """Return where batches are made: once for all loaders, so that nothing is copied to a device twice."""
        device = self._device()
        if self._arrays is None or self._arrays.device not in {device, MappedArrays.device}:
            self._arrays = arrays_for(self.prepared, device, self.resident)
        return self._arrays

    def _device(self) -> torch.device:
        """Return the net's device; without a trainer it is the CPU."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _limited(self, batches: int) -> int:
        return batches if self.limit_batches is None else min(batches, self.limit_batches)

    def _place(self) -> tuple[int, int]:
        """Return this process's number and how many there are; without a trainer there is one."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def batches_done(checkpoint: Mapping[str, Any]) -> int:
    """Return how many batches of its epoch a checkpoint of Lightning has been trained on.

    Counted are steps that were finished. A checkpoint of a complete epoch gives that epoch's number of batches;
    `DataModule.start_batch` then takes it as the beginning of the next.
    """
    progress: Mapping[str, Any] = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    done: int = progress["processed"]
    return done
