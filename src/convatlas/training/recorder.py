"""The history of a run: one row an epoch, kept in the checkpoint, so that a resumed run has every epoch once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from convatlas.core.metrics import SCORES
from convatlas.core.processes import STARTED
from convatlas.core.record import PARTS

LOGGED = ("train/", "val/", "net/", "gradient/")
PRINTED = {"train/loss", "val/loss", *(f"val/{score}" for score, *_ in SCORES.values())}


idle_since = [STARTED]
"""When this process began or had finished its last seed."""


def now() -> float:
    """Return the seconds of a clock once a GPU, if this process uses one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Recorder(Checkpoint):
    """Writes down every epoch's metrics, tells the tracker, and prints a line.

    It is a `Checkpoint` because Lightning calls those last, when the epoch's training and validation metrics are all
    known; it comes before the callbacks that save, so that the saved state has the epoch's row.

    Args:
        label: what the line starts with.
        epochs: how many epochs there will be.
        on_epoch: called with the row on rank zero.
        show: print a line an epoch.
        logged: how the names of the metrics begin that are written down.
        printed: the metrics of the printed line.

    Attributes:
        parts: the seconds of the seed by what they went into.
        peak_memory: bytes that torch had allocated on the GPU at most; None without one.
    """

    def __init__(
        self,
        label: str,
        epochs: int,
        on_epoch: Callable[[dict[str, float]], None],
        *,
        show: bool,
        logged: tuple[str, ...] = LOGGED,
        printed: Collection[str] = PRINTED,
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self.epoch_seconds: list[float] = []
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.peak_memory: int | None = None
        self._label = label
        self._epochs = epochs
        self._on_epoch = on_epoch
        self._show = show
        self._logged = logged
        self._printed = printed
        self._running_since: float | None = None
        self._waiting_since = 0.0
        self._validating_since = 0.0
        self._seconds = 0.0
        self._learning_rate = 0.0

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add the seconds of the block to a part."""
        started = now()
        try:
            yield
        finally:
            self.parts[part] += now() - started

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; within an epoch that is resumed, Lightning calls no start of an epoch."""
        self._running_since = self._waiting_since = now()
        self.parts["start"] += self._running_since - idle_since[0]
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._running_since = self._waiting_since = now()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Add what the batch was waited for."""
        self.parts["data"] += time.perf_counter() - self._waiting_since

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Begin to wait for the next batch."""
        self._waiting_since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the rate of this step: after the epoch's last one the schedule has moved on already."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock: an epoch's seconds are those of training alone, until the GPU has done its last step."""
        self._seconds, self._running_since = self._seconds_so_far(), None
        self._validating_since = now()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the validation's seconds."""
        self.parts["validation"] += now() - self._validating_since

    def _seconds_so_far(self) -> float:
        running = 0.0 if self._running_since is None else now() - self._running_since
        return self._seconds + running

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row."""
        row = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(trainer.global_step),
            "lr": float(self._learning_rate),
        }
        row |= {k: float(v) for k, v in sorted(trainer.callback_metrics.items()) if k.startswith(self._logged)}
        self.rows.append(row)
        self.epoch_seconds.append(self._seconds_so_far())
        self._seconds, self._running_since = 0.0, None
        if torch.cuda.is_initialized():
            self.peak_memory = max(self.peak_memory or 0, torch.cuda.max_memory_allocated())
        if trainer.is_global_zero:
            with self.measured("tracking"):
                self._on_epoch(row)
            if self._show:
                print(self._line(row), flush=True)

    def _line(self, row: dict[str, float]) -> str:
        metrics = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k in self._printed)
        return f"{self._label}  epoch {int(row['epoch'])}/{self._epochs}  {metrics}  {self.epoch_seconds[-1]:.1f} s"

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        seconds = self._seconds_so_far()
        return {
            "rows": self.rows,
            "epoch_seconds": self.epoch_seconds,
            "seconds": seconds,
            "lr": self._learning_rate,
            "parts": self.parts,
            "peak_memory": self.peak_memory,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the epochs before the interruption."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.epoch_seconds = list(state_dict["epoch_seconds"])
        self._seconds = float(state_dict.get("seconds", 0.0))
        self.parts |= state_dict.get("parts", {})
        self._learning_rate = float(state_dict.get("lr", 0.0))
        self.peak_memory = state_dict.get("peak_memory")
