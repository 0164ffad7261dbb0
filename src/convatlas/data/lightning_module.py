"""Batches of a LightningDataModule of another package (`data.module`), as tasks take them; nothing is prepared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from convatlas.core.config import DataConfig
from convatlas.core.digests import digest
from convatlas.core.errors import UserError
from convatlas.core.seeds import mixed_seed
from convatlas.core.targets import build, named, user_errors
from convatlas.data.card import Card
from convatlas.data.prepared import PreparedData

__all__ = ["ModuleData", "open_data", "seed_all"]


def open_data(config: DataConfig) -> PreparedData:
    """Open the prepared data of a configuration; for `data.module` a card alone, whose fingerprint is of the section.

    Raises:
        UserError: the data are not prepared, or the module cannot be built.
    """
    if config.module is None:
        return PreparedData.open_for(config)
    classes = getattr(_new_module(config), "classes", None) or range(config.num_classes)
    if len(classes) != config.num_classes:
        raise UserError(f"data.num_classes={config.num_classes}, but data.module has {len(classes)} classes.")
    known: dict[str, Any] = {
        "name": config.name,
        "task": config.task,
        "classes": tuple(map(str, classes)),
        "image_shape": (config.in_channels, config.image_size, config.image_size),
        "fingerprint": digest(config.model_dump(mode="json")),
    }
    card = Card.model_construct(**known)
    return PreparedData(config.prepared, card, {})


class ModuleData(pl.LightningDataModule):
    """The data module of `data.module`, limited and seeded as our own; its transfer hooks are applied on the CPU.

    Args:
        prepared: what `open_data` returned.
        config: `conf/data`.
        seed: of the run; before each training batch all generators are seeded by it, the epoch and the batch's number.
        limit_batches: stop each epoch of training, validation and test after so many batches.
        as_made: leave batches as the module makes them. Otherwise a pair `(images, labels)` becomes a dictionary, as
            `convatlas.data.batches` has it, and a dictionary gets `indices`.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: DataConfig,
        seed: int,
        limit_batches: int | None,
        *,
        as_made: bool = False,
    ) -> None:
        super().__init__()
        self.prepared, self.config, self.seed = prepared, config, seed
        self.limit_batches, self.as_made = limit_batches, as_made
        self.start_batch = 0  # set as for `DataModule`, and always the start of an epoch
        self.module = _new_module(config)
        named(self, "data.module")

    def setup(self, stage: str) -> None:
        """Let the module fetch and open its files."""
        self.module.trainer = self.trainer
        self.module.prepare_data()
        self.module.setup(stage)

    def train_dataloader(self) -> Batches:
        """Return the module's training batches."""
        return Batches(self, self.module.train_dataloader(), seeded=True)

    def val_dataloader(self) -> Batches:
        """Return the module's validation batches."""
        return Batches(self, self.module.val_dataloader())

    def test_dataloader(self) -> Batches:
        """Return the module's test batches."""
        return Batches(self, self.module.test_dataloader())

    def sample_batch(self, tested: Any, images: int = 16) -> dict[str, Any]:
        """Return the first of the tested images, at most one batch, for pictures."""
        first = next(iter(self.test_dataloader()))
        return {name: values[: min(images, len(tested))] for name, values in first.items()}

    def dry_run(self) -> Any:
        """Return the first training batch, and make a loader of each split.

        Raises:
            UserError: the module raises, or its batches are not those of a task.
        """
        with user_errors():
            self.setup("fit")
            batch = next(iter(self.train_dataloader()), None)
            self.val_dataloader()
            self.setup("test")
            self.test_dataloader()
        if batch is None:
            raise UserError("data.module gives no training batch; correct it.")
        return batch


class Batches:
    """The batches of one loader of a `ModuleData`."""

    def __init__(self, data: ModuleData, loader: Any, *, seeded: bool = False) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, (list, tuple, Mapping)):
            raise UserError("data.module gives no single loader of a split; let each of its methods return one.")
        self.data, self.loader, self.seeded = data, loader, seeded
        named(self, "data.module")

    def __len__(self) -> int:
        limit = self.data.limit_batches
        try:
            return len(self.loader) if limit is None else min(limit, len(self.loader))
        except TypeError as error:
            if limit is None:
                raise UserError("data.module: a loader has no length; set trainer.limit_batches.") from error
            return limit

    def __iter__(self) -> Iterator[Any]:
        module, trainer = self.data.module, self.data.trainer
        place = (self.data.seed, 0 if trainer is None else trainer.current_epoch)
        if self.seeded:
            seed_all(*place)
        batches, first = iter(self.loader), 0
        for number in range(len(self)):
            if self.seeded:
                seed_all(*place, number)
            if (made := next(batches, None)) is None:
                return
            batch = module.on_after_batch_transfer(module.on_before_batch_transfer(made, 0), 0)
            if not self.data.as_made:
                batch = self._as_dictionary(batch, first)
                first += len(batch["images"])
            yield batch

    def _as_dictionary(self, batch: Any, first: int) -> dict[str, Any]:
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and self.data.config.task == "classification":
            batch = {"images": batch[0], "labels": batch[1]}
        if not isinstance(batch, Mapping) or "images" not in batch:
            raise UserError(
                f"data.module gives a {type(batch).__name__} as a batch; a task takes a dictionary of `images` and its "
                "targets, in classification also a pair (images, labels)."
            )
        return {**batch, "indices": torch.arange(first, first + len(batch["images"]))}


def seed_all(*parts: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    pl.seed_everything(mixed_seed(*parts) % 2**32, verbose=False)


def _new_module(config: DataConfig) -> Any:
    module = build(config.module or {}, "data.module")
    if not isinstance(module, pl.LightningDataModule):
        raise UserError(f"data.module: {type(module).__name__} is no LightningDataModule of pytorch_lightning.")
    return named(module, "data.module")
