"""Callbacks between Lightning and what a net offers beside `forward`; see `convatlas.models.interfaces`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import MaxMetric

from convatlas.core.processes import of_all_processes, rank
from convatlas.models.interfaces import FollowsTraining, HasFigures, Invertible
from convatlas.tasks.base import Task
from convatlas.tasks.reconstruction import reconstruct

__all__ = ["AveragesWeights", "FollowsNet", "GradientNorms", "InvertsImages", "MeanOverEpoch"]


class MeanOverEpoch(pl.Callback):
    """Takes figures at every training batch and logs their mean over the epoch, also in an epoch that was resumed."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._batches = 0

    def add(self, figures: Mapping[str, float | Tensor]) -> None:
        """Add the figures of one batch; tensors stay on their device until the epoch ends."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._batches += 1

    def close(self) -> dict[str, float]:
        """Return the means and forget them."""
        means = {name: float(total) / self._batches for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint within an epoch keeps: the sums of every process, since only one writes."""
        mine = {name: float(total) for name, total in self._sums.items()}
        return {"sums": of_all_processes(mine), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with this process's sums of the interrupted epoch."""
        self._sums, self._batches = dict(state_dict["sums"][rank()]), state_dict["batches"]


class FollowsNet(MeanOverEpoch):
    """Gives a net the progress of its training, and logs the net's figures of its batches as `net/<name>`.

    Which stage a net is in is a function of the step and of a seed that all processes share, so a resumed training
    goes on in the stage it was in.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, idx: int) -> None:
        """Prepare the net for a batch."""
        task = cast("Task", pl_module)
        if isinstance(task.net, FollowsTraining):
            steps = max(1, int(trainer.estimated_stepping_batches))
            task.net.begin_step(trainer.global_step, steps, task.batch_seed())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the net about the batch."""
        net = cast("Task", pl_module).net
        if isinstance(net, HasFigures):
            self.add(net.step_figures())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means of the epoch; over several processes the mean of theirs."""
        for name, value in self.close().items():
            pl_module.log(f"net/{name}", value, sync_dist=True)


class GradientNorms(MeanOverEpoch):
    """Logs the Euclidean norm of the gradient of every layer's weights, before clipping, as `gradient/<number>`.

    Layers are the convolutions and linear maps in the order of the net's definition, counted from 1. A layer without a
    gradient in a batch, a dropped one for example, counts as zero.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        self._weights = [module.weight for module in net.modules() if isinstance(module, kinds)]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradients of a whole batch: all its pieces added up, and unscaled in mixed precision."""
        zero = torch.zeros((), device=pl_module.device)
        norms = [zero if w.grad is None else w.grad.detach().float().norm() for w in self._weights]
        self.add({f"{number:03d}": norm for number, norm in enumerate(norms, start=1)})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means of the epoch."""
        for name, value in self.close().items():
            pl_module.log(f"gradient/{name}", value, sync_dist=True)


class AveragesWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, on the device that trains, without waiting for it.

    Lightning copies the net before it goes to its device, so that every step would bring all weights back to the CPU;
    and torch asks the device at every step how many steps were averaged. On a GPU the weights are averaged in a few
    launches for all of them.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self._decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the net to the device that it will train on."""
        self._device = trainer.strategy.root_device
        if self._device.type != "cpu":
            self._kwargs = {"multi_avg_fn": get_ema_multi_avg_fn(self._decay)}
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = torch.zeros_like(self._average_model.n_averaged, device="cpu")


class InvertsImages(pl.Callback):
    """Rebuilds every test image from the last features of an invertible net, and logs the largest error of a pixel."""

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from nothing."""
        self._largest = MaxMetric().to(pl_module.device)

    def on_test_batch_end(  # noqa: PLR0917 - Lightning's signature
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Rebuild the images of a batch."""
        net = cast("Task", pl_module).net
        if isinstance(net, Invertible):
            images = batch["images"]
            self._largest.update((reconstruct(net, images) - images).abs().max())

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the error, in units of normalised pixel values."""
        if isinstance(cast("Task", pl_module).net, Invertible):
            pl_module.log("test/reconstruction_error", self._largest.compute())
