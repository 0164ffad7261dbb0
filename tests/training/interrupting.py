"""Callbacks that end a training as a kill does, for tests of what a second start makes of it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class Killed(BaseException):
    """Ends a training without any of the orderly ends."""


class KillAfterBatch(pl.Callback):
    """Ends the training after a batch of an epoch, both from 0; a second start passes it."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise Killed


class KillInValidation(pl.Callback):
    """Ends the training after the first batch of an epoch's validation, from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_batch_end(  # noqa: PLR0917 - Lightning's signature
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.current_epoch == self.epoch:
            raise Killed


class KillAfterStop(Checkpoint):
    """Ends the training when early stopping has stopped it, after the last checkpoint is written."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise Killed
