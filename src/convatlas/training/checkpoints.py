"""Checkpoints: written whole, read without unpickling code, the best by validation and the last for going on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.plugins.io import TorchCheckpointIO

from convatlas.core.files import atomic_write
from convatlas.models.weights import read_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it, so that a killed process leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain values only."""
        return read_checkpoint(Path(path))


def checkpoint_callbacks(folder: Path, monitor: str, mode: str, every_n_steps: int | None) -> list[MovableCheckpoint]:
    """Make the callbacks that save the best epoch, and the state to go on from."""
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_last": False}
    callbacks = [
        MovableCheckpoint(**common, filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=True),
        MovableCheckpoint(**common, filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    if every_n_steps is not None:
        callbacks.append(WithinEpochs(**common, filename="last", every_n_train_steps=every_n_steps))
    return callbacks


class MovableCheckpoint(ModelCheckpoint):
    """A checkpoint whose record of the best epoch moves with the folder.

    Lightning keeps the folder in its state, and forgets the best score where a training goes on in another.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the record of the interrupted training."""
        folder = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        here = {key: moved(state_dict[key]) for key in paths if key in state_dict}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **here, "best_k_models": scores, "dirpath": self.dirpath})


class StopsAgain(EarlyStopping):
    """Early stopping that a training killed right after its last epoch obeys: Lightning does not keep the stop."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a training that had stopped already."""
        if self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop = True


class CatchesUp(pl.Callback):
    """Advances a schedule that follows a metric where a training goes on from the end of an epoch.

    Lightning advances it after the checkpoint of that epoch is written.

    Args:
        rows: the history, a row an epoch.
    """

    def __init__(self, rows: Callable[[], Sequence[Mapping[str, float]]]) -> None:
        self._rows = rows

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the schedule the last epoch's metric, unless it has seen it."""
        rows = self._rows()
        for schedule in trainer.lr_scheduler_configs:
            if schedule.reduce_on_plateau and schedule.scheduler.last_epoch < len(rows) // schedule.frequency:
                pl_module.lr_scheduler_step(schedule.scheduler, rows[-1][str(schedule.monitor)])


class WithinEpochs(MovableCheckpoint):
    """Saves every so many steps, and only after a whole one: gradients that wait for the rest of a step are not kept.

    Not after an epoch's last step: resumed from there, Lightning would not validate.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, unless a step is under way or the end of the epoch saves in a moment."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole_step and not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
