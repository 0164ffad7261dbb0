"""What every task shares: losses gathered without slowing the step, honest metrics, predictions of each test image."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError, near_matches
from convatlas.core.metrics import Direction, direction
from convatlas.core.processes import of_all_processes
from convatlas.core.seeds import mixed_seed
from convatlas.core.targets import build
from convatlas.models.blocks import blocks_of
from convatlas.models.freezing import keep_frozen_in_eval
from convatlas.models.interfaces import AddsLossTerms
from convatlas.tasks.optimisation import build_optimizer, build_schedule, step_schedule
from convatlas.tasks.predicting import fitted_image

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from convatlas.data.card import Card
    from convatlas.data.decoding import Spacing
    from convatlas.data.squares import Geometry

Batch = dict[str, Any]
Columns = dict[str, Any]
"""A table by column, with an entry for each image: an array `(N, ...)`, or a list of N arrays or values."""


def weights_of_terms(given: Any) -> dict[str, float]:
    """Return `recipe.loss.auxiliary`, weights by the names of a loss's terms.

    Raises:
        UserError: it is something else.
    """
    weights = {} if given is None else given
    numbers = weights.values() if isinstance(weights, Mapping) else [None]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
        raise UserError(f"recipe.loss.auxiliary={given} is no mapping of terms to weights, for example {{dice: 0.5}}.")
    return dict(weights)


DIVERGED = "Lower recipe.optimizer.lr, or set recipe.gradient_clip_norm"
"""What may help a training that diverges."""


class DivergedError(UserError):
    """The loss, the score or a weight is no longer a finite number."""


class Task(pl.LightningModule, ABC):
    """A net, its recipe and its metrics.

    A task owns all that is particular to it: its name and score, losses, metrics, the rows and figures of a test,
    predictions of single images and their drawing. Everything about steps, epochs, several processes and resuming is
    here.

    Args:
        net: the net to train.
        config: the run.
        classes: names by class number, from the data card.
        seed: this run's seed; draws within the net (dropout, dropped paths) depend on it and on the step alone.
        metrics: of one evaluation, by name; see `conf/task` and `conf/metrics`.
    """

    name: ClassVar[str]
    """As `data.task` has it."""
    score: ClassVar[str]
    """The metric that stands for the task. Its best validation value marks the best epoch, unless the recipe names
    another."""
    has_image_logits: ClassVar[bool] = False
    """Whether the net answers with one vector of logits for each image, as test-time views and fine-tuning need it."""

    def __init__(
        self, net: nn.Module, config: RunConfig, classes: list[str], seed: int, metrics: Mapping[str, Metric]
    ) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.classes = classes
        self.seed = seed
        loss = {key: value for key, value in config.recipe.loss.items() if key != "auxiliary"}
        self.loss_function = build(loss, "recipe.loss")
        self.term_weights = weights_of_terms(config.recipe.loss.get("auxiliary"))
        for name, metric in config.metrics.items():
            if not isinstance(metrics[name], Metric):
                raise UserError(f"metrics.{name}: {metric['_target_']} is no metric of torchmetrics.")
        evaluated = {**self.own_metrics(), **metrics}
        self.validation_metrics = nn.ModuleDict(evaluated)
        self.test_metrics = nn.ModuleDict({name: metric.clone() for name, metric in evaluated.items()})
        self.tested: Columns = {}
        self._tested_batches: list[Columns] = []
        self._loss_sums: dict[str, Tensor] = {}
        self._batches = 0

    # ---- what a task writes -----------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of one training batch; `loss` is their weighted sum, which is minimised."""

    def own_metrics(self) -> dict[str, Metric]:
        """Make the metrics that the task keeps beside those of the configuration."""
        return {}

    @abstractmethod
    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> Any:
        """Update the metrics with one batch, and return what `columns` makes its table of, still on the device."""

    @abstractmethod
    def columns(self, batch: Batch, evaluated: Any) -> Columns:
        """Return the table of a test batch, `index` among its columns, as arrays on the CPU.

        Args:
            batch: the batch.
            evaluated: what `evaluate` returned for it.
        """

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute the metrics of a whole evaluation; every process gets the same values.

        A metric that gives a dictionary gives one value for each of its scalars.
        """
        values: dict[str, float] = {}
        for name, metric in metrics.items():
            value = metric.compute()
            if isinstance(value, Mapping):
                values |= {f"{name}_{key}": float(each) for key, each in value.items() if each.numel() == 1}
            else:
                values[name] = float(value)
        return values

    def direction(self, name: str) -> Direction | None:
        """Say whether a metric of `summarise` is better when it is higher ("max") or lower; None where nobody says."""
        own = next((m for known, m in self.validation_metrics.items() if f"{name}_".startswith(f"{known}_")), None)
        return direction(name, own)

    @abstractmethod
    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw pictures of a few test images with their predictions, and of the whole of the predictions."""

    @abstractmethod
    def example_targets(self, size: int) -> Batch:
        """Return what a batch of one image of `size` pixels has beside `images` and `indices`."""

    def predict(
        self, pixels: NDArray[np.uint8], card: Card, spacing: Spacing | None = None
    ) -> tuple[dict[str, Any], Any]:
        """Answer for one image.

        Args:
            pixels: `(C, H, W)`, of any size; the image is fitted to the net as the training's images were.
            card: the data card of the net's run.
            spacing: millimetres from row to row and from column to column, where the file tells them.

        Returns:
            A row of plain values, boxes in pixels of the image as given; and what `draw` needs.

        Raises:
            BadImageError: the image cannot be fitted.
        """
        fitted, geometry = fitted_image(pixels, self.config, card, spacing)
        return self.read(self.answers(fitted, card)[0], geometry, (pixels.shape[1], pixels.shape[2]))

    @abstractmethod
    def answers(self, images: Tensor, card: Card) -> list[Any]:
        """Run the net on fitted images `(B, C, S, S)` in [0, 1]; returns what it says of each, on the CPU."""

    @abstractmethod
    def read(self, answer: Any, geometry: Geometry, size: tuple[int, int]) -> tuple[dict[str, Any], Any]:
        """Turn one of `answers` into what `predict` returns.

        Args:
            answer: of the image.
            geometry: where its pixels went when it was fitted.
            size: its height and width.
        """

    @abstractmethod
    def draw(self, pixels: NDArray[np.uint8], answer: Any, row: Mapping[str, Any]) -> Image:
        """Draw what `predict` answered over its image, enlarged to 256 pixels at least."""

    def mask(self, answer: Any) -> NDArray[np.uint8] | None:
        """Return the classes `(H, W)` of an image's pixels in what `predict` answered; None where the task has none."""
        return None

    # ---- before a training ------------------------------------------------------------------------------------------

    @property
    def monitor(self) -> str:
        """The metric that marks the epoch to test: of validation, `val/<name>`, or, for the last epoch, `step`."""
        if self.config.recipe.protocol == "last_epoch":
            return "step"
        return self.config.recipe.monitor or f"val/{self.score}"

    @property
    def monitor_mode(self) -> Direction:
        """Whether the monitored metric is better when it is higher or lower.

        Raises:
            UserError: the metric does not say.
        """
        mode = "max" if self.monitor == "step" else self.direction(self.monitor.removeprefix("val/"))
        if mode is None:
            raise UserError(
                f"recipe.monitor={self.monitor}: nothing says whether higher or lower is better; choose another metric."
            )
        return mode

    def dry_run(self) -> None:
        """Evaluate one black image, so that what does not fit is refused before anything is written.

        Raises:
            UserError: the net does not take images of the data, a metric does not take the task's predictions, or the
                monitored metric does not exist.
        """
        channels, size = self.config.data.in_channels, self.config.data.image_size
        images = torch.zeros(1, channels, size, size)
        self.eval()
        try:
            with torch.inference_mode():
                self.check_answer(images)
        except ValueError as error:
            raise UserError(str(error)) from error
        except (RuntimeError, AssertionError) as error:  # nets of other packages assert what they take
            line = str(error).splitlines()[0]
            raise UserError(
                f"The net does not take images of {channels} channels and {size} pixels ({line}); "
                "correct model.in_channels, data.image_size or the net's own options."
            ) from error
        metrics = {name: metric.clone() for name, metric in self._metrics(self.validation_metrics).items()}
        batch = {"images": images, "indices": torch.zeros(1, dtype=torch.int64), **self.example_targets(size)}
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._try(batch, metrics)
            known = {"step", *(f"val/{name}" for name in self.summarise(metrics))}
        if self.monitor not in known and not self._may_come(self.monitor):
            raise UserError(
                f"recipe.monitor={self.monitor}: this task has no such metric. {near_matches(self.monitor, known)}"
            )
        _ = self.monitor_mode

    def _may_come(self, monitor: str) -> bool:
        """Say whether a metric that one black image does not have may be there later, such as that of one class."""
        return False

    def _try(self, batch: Batch, metrics: dict[str, Metric]) -> None:
        """Update every metric with one batch; an error is that of the metric which the user added."""
        own = {name: metric for name, metric in metrics.items() if name not in self.config.metrics}
        self.evaluate(batch, own)
        self.summarise(own)
        for name in self.config.metrics:
            try:
                self.evaluate(batch, {**own, name: metrics[name]})
                self.summarise({**own, name: metrics[name]})
            except Exception as error:
                line = " ".join(str(error).split())[:200]
                raise UserError(
                    f"metrics.{name}: {self.config.metrics[name]['_target_']} does not take what {self.name} predicts "
                    f"({line}); choose a metric for {self.name}, or correct its arguments."
                ) from error

    def try_size(self, channels: int, size: int) -> None:
        """Run the net on an image of another size than the data's, which multi-scale training will have."""
        with torch.inference_mode():
            self.net.eval()(torch.zeros(1, channels, size, size))

    @abstractmethod
    def check_answer(self, images: Tensor) -> None:
        """Raise UserError unless the net takes `images: (1, C, H, W)` and its answer fits the data's classes."""

    # ---- several processes ------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Divide the net among the processes where the strategy has a mesh of them (`trainer.strategy=fsdp`).

        Block by block, then the rest, as torchtitan does: a block's weights are gathered while the one before computes,
        and given back after it, so that a process never has the whole net in memory.
        """
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for block in blocks_of(self.net):
                fully_shard(block, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    # ---- optimisation -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Build the recipe's optimiser and its schedule."""
        recipe = self.config.recipe
        mixed = self.config.trainer.precision.endswith("-mixed")
        optimizer = build_optimizer(self.net, recipe, mixed_precision=mixed)
        steps = max(1, int(self.trainer.estimated_stepping_batches) // recipe.epochs)
        schedule = build_schedule(
            recipe.schedule, optimizer, recipe.epochs, steps, monitor=self.monitor, mode=self.monitor_mode
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advance the schedule."""
        each_step = self.config.recipe.schedule.get("interval", "step") == "step"
        step_schedule(scheduler, self.current_epoch + 1, self.global_step, metric, each_step=each_step)

    # ---- training ---------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Keep what the recipe freezes out of training: the statistics of its batch norms stay as they are."""
        if self.config.recipe.trainable != "all":
            keep_frozen_in_eval(self.net)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the draws within the net, so that a resumed run draws what the undisturbed one would have."""
        piece = self._batches % self.trainer.accumulate_grad_batches
        seed = mixed_seed(self.batch_seed(), self.global_rank, *([piece] if piece else []))
        if self.device.type == "cpu":  # torch.manual_seed notes a traceback for each GPU library that is not in use
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def batch_seed(self) -> int:
        """Return a number for each training batch, the same on every process and in each micro-batch of it."""
        return mixed_seed(self.seed, self.current_epoch, self._batches // self.trainer.accumulate_grad_batches)

    def all_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of one training batch and those that the net adds itself; `loss` is the whole."""
        terms = self.losses(batch)
        if not isinstance(self.net, AddsLossTerms):
            return terms
        added = self.net.loss_terms()
        return terms | added | {"loss": terms["loss"] + sum(added.values())}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss; its terms are summed on the device and logged once an epoch."""
        terms = self.all_losses(batch)
        for name, value in terms.items():
            detached = value.detach().float()
            # A copy: the next replay of a CUDA graph writes where a loss that it computed lies.
            self._loss_sums[name] = self._loss_sums[name] + detached if name in self._loss_sums else detached.clone()
        self._batches += 1
        return terms["loss"]

    def on_train_epoch_end(self) -> None:
        """Log the mean of each loss term over the epoch.

        Raises:
            DivergedError: the loss is not finite, in any process.
        """
        loss = self.trainer.strategy.reduce(self._loss_sums["loss"].clone(), reduce_op="sum")
        if not torch.isfinite(loss):
            raise DivergedError(f"The loss became {float(loss)} in epoch {self.current_epoch + 1}. {DIVERGED}.")
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
        """Forget the tables of an earlier evaluation."""
        self.tested, self._tested_batches = {}, []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics and keep the table of the batch."""
        evaluated = self.evaluate(batch, self._metrics(self.test_metrics))
        self._tested_batches.append(self.columns(batch, evaluated))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and bring the tables of all processes together, in the order of the images."""
        for name, value in self._close(self.test_metrics).items():
            self.log(f"test/{name}", value)
        parts = of_all_processes(joined(self._tested_batches))
        self.tested, self._tested_batches = self.complete(in_order(joined(parts))), []

    def complete(self, columns: Columns) -> Columns:
        """Return the table of all test images with what only all together tell, such as `part_<metric>`.

        A metric of the whole split that is no mean over its images has as an image's part the amount by which that
        image moves it: the parts' differences between two nets say how far other images would move the difference.
        """
        return columns

    def predictions(self) -> pd.DataFrame:
        """Return the table of the test; a cell of several values is a list of them, of one array each."""
        import pandas as pd

        return pd.DataFrame({name: _cells(column) for name, column in self.tested.items()})

    @staticmethod
    def _metrics(modules: nn.ModuleDict) -> Mapping[str, Any]:
        return dict(modules.items())

    def _close(self, modules: nn.ModuleDict) -> dict[str, float]:
        values = self.summarise(self._metrics(modules))
        for metric in modules.values():
            metric.reset()  # type: ignore[operator]
        return values


# ---- the table of a test --------------------------------------------------------------------------------------------


def joined(parts: Sequence[Columns]) -> Columns:
    """Put tables with the same columns one below the other."""
    found: Columns = {}
    for name in parts[0] if parts else ():
        pieces = [part[name] for part in parts]
        is_array = isinstance(pieces[0], np.ndarray)
        found[name] = np.concatenate(pieces) if is_array else [each for piece in pieces for each in piece]
    return found


def in_order(columns: Columns) -> Columns:
    """Sort a table by its column `index`."""
    order = np.argsort(columns["index"], kind="stable")
    return {
        name: column[order] if isinstance(column, np.ndarray) else [column[place] for place in order]
        for name, column in columns.items()
    }


def rows_of(columns: Columns) -> list[dict[str, Any]]:
    """Return a table by row."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def on_cpu(values: Tensor) -> NDArray[Any]:
    """Return a tensor as an array."""
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array


def _cells(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return column if column.ndim == 1 else list(column)
    return [list(each) if isinstance(each, np.ndarray) and each.ndim > 1 else each for each in column]
