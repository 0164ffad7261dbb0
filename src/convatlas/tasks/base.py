"""What every task shares: losses gathered without slowing the step, honest metrics, predictions of each test image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pytorch_lightning as pl
import torch
import torch.distributed
from torch import Tensor, nn
from torchmetrics import Metric

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.core.processes import of_all_processes
from convatlas.core.seeds import mixed_seed
from convatlas.models.freezing import keep_frozen_in_eval
from convatlas.models.interfaces import AddsLossTerms
from convatlas.tasks.optimisation import build_optimizer, build_schedule

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Batch = dict[str, Any]


class DivergedError(UserError):
    """The loss is no longer a finite number."""


class Task(pl.LightningModule, ABC):
    """A net, its recipe and its metrics.

    A task writes `losses`, `new_metrics`, `evaluate`, `summarise` and `figures`; everything about steps, epochs,
    several processes and resuming is here.

    Args:
        net: the net to train.
        config: the run.
        classes: names by class number, from the data card.
        seed: this run's seed; draws within the net (dropout, dropped paths) depend on it and on the step alone.
    """

    monitor: ClassVar[str]
    """The validation metric whose highest value marks the best epoch, unless the recipe names another."""

    def __init__(self, net: nn.Module, config: RunConfig, classes: list[str], seed: int) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.classes = classes
        self.seed = seed
        self.validation_metrics = nn.ModuleDict(self.new_metrics())
        self.test_metrics = nn.ModuleDict(self.new_metrics())
        self.test_rows: list[dict[str, Any]] = []
        self._loss_sums: dict[str, Tensor] = {}
        self._batches = 0

    # ---- what a task writes -----------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of one training batch; `loss` is their weighted sum, which is minimised."""

    @abstractmethod
    def new_metrics(self) -> dict[str, Metric]:
        """Make the metrics of one evaluation, by name."""

    @abstractmethod
    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Update the metrics with one batch, and return a row of plain values for each of its images."""

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute the metrics of a whole evaluation; every process gets the same values."""
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    @abstractmethod
    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw pictures of a few test images with their predictions, and of the whole of the predictions."""

    # ---- several processes ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Divide the net among the processes where the strategy has a mesh of them (`trainer.strategy=fsdp`)."""
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    # ---- optimisation -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Build the recipe's optimiser and its schedule, which advances with every step."""
        recipe = self.config.recipe
        optimizer = build_optimizer(self.net, recipe)
        steps = max(1, int(self.trainer.estimated_stepping_batches) // recipe.epochs)
        schedule = build_schedule(optimizer, recipe.schedule, recipe.epochs, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- training ---------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Keep what the recipe freezes out of training: the statistics of its batch norms stay as they are."""
        if self.config.recipe.trainable != "all":
            keep_frozen_in_eval(self.net)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the draws within the net, so that a resumed run draws what the undisturbed one would have."""
        torch.manual_seed(mixed_seed(self.batch_seed(), self.global_rank))

    def batch_seed(self) -> int:
        """Return a number for each training batch, the same on every process."""
        return mixed_seed(self.seed, self.current_epoch, self._batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss; its terms are summed on the device and logged once an epoch."""
        terms = self.losses(batch)
        if isinstance(self.net, AddsLossTerms):
            added = self.net.loss_terms()
            terms = terms | added | {"loss": terms["loss"] + sum(added.values())}
        for name, value in terms.items():
            detached = value.detach().float()
            self._loss_sums[name] = self._loss_sums[name] + detached if name in self._loss_sums else detached
        self._batches += 1
        return terms["loss"]

    def on_train_epoch_end(self) -> None:
        """Log the mean of each loss term over the epoch.

        Raises:
            DivergedError: the loss is not finite, in any process.
        """
        loss = self.trainer.strategy.reduce(self._loss_sums["loss"].clone(), reduce_op="sum")
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss became {float(loss)} in epoch {self.current_epoch + 1}. "
                "Lower recipe.optimizer.lr, or set recipe.gradient_clip_norm."
            )
        for name, total in self._loss_sums.items():
            self.log(f"train/{name}", total / self._batches, sync_dist=True)
        self._loss_sums, self._batches = {}, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the epoch's sums, those of every process, since only one writes."""
        checkpoint["loss_sums"] = of_all_processes({name: total.cpu() for name, total in self._loss_sums.items()})
        checkpoint["loss_batches"] = self._batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take this process's sums of the epoch back."""
        mine: dict[str, Tensor] = checkpoint["loss_sums"][self.global_rank]
        self._loss_sums = {name: total.to(self.device) for name, total in mine.items()}
        self._batches = checkpoint["loss_batches"]

    # ---- evaluation -------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self.evaluate(batch, self._metrics(self.validation_metrics))

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        for name, value in self._close(self.validation_metrics).items():
            self.log(f"val/{name}", value)

    def on_test_epoch_start(self) -> None:
        """Forget the rows of an earlier evaluation."""
        self.test_rows = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics and keep a row for each image."""
        self.test_rows.extend(self.evaluate(batch, self._metrics(self.test_metrics)))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and bring the rows of all processes together, in the order of the images."""
        for name, value in self._close(self.test_metrics).items():
            self.log(f"test/{name}", value)
        rows = [row for part in of_all_processes(self.test_rows) for row in part]
        self.test_rows = sorted(rows, key=lambda row: row["index"])

    @staticmethod
    def _metrics(modules: nn.ModuleDict) -> Mapping[str, Any]:
        return dict(modules.items())

    def _close(self, modules: nn.ModuleDict) -> dict[str, float]:
        values = self.summarise(self._metrics(modules))
        for metric in modules.values():
            metric.reset()  # type: ignore[operator]
        return values
