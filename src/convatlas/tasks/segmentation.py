"""Segmentation: one class a pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from convatlas.models.layers.crop import centre_crop
from convatlas.tasks.base import Batch, Task
from convatlas.tasks.losses import soft_dice_loss, weighted_sum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class SegmentationTask(Task):
    """Cross-entropy plus soft Dice; Dice of each foreground class and its mean, and the mean IoU.

    The loss is `cross_entropy + dice`, each with its weight in `recipe.loss.auxiliary` (1 where it has none there, 0
    switches it off). Dice and IoU are those of a whole split: pixels are counted over all images, then divided once, so
    that they do not depend on the batches. A class that neither truth nor prediction has anywhere is not defined: it
    has no value and does not enter the mean; where no class is defined the mean is 0, which is never the best epoch.

    A net whose output is smaller than its input (unpadded convolutions) is trained and judged on the middle of the
    mask, cut to the output's size.
    """

    monitor = "val/dice"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss and its terms."""
        logits = self.net(batch["images"])
        return self._losses(logits, centre_crop(batch["masks"], logits.shape[-2:]))

    def _losses(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        terms = {
            "cross_entropy": F.cross_entropy(logits, masks, label_smoothing=self.config.recipe.loss.label_smoothing),
            "dice": soft_dice_loss(logits.float().softmax(dim=1), masks),
        }
        return {"loss": weighted_sum(terms, self.config.recipe.loss.auxiliary), **terms}

    def new_metrics(self) -> dict[str, Metric]:
        """Make the metrics."""
        return {"loss": MeanMetric(), "pixels": PixelCounts(len(self.classes))}

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Update the metrics; a row holds the image's index, its mean Dice and that of each foreground class.

        In a row a class that neither the image's truth nor its prediction has is None; so is the mean if all are.
        """
        logits = self.net(batch["images"]).float()
        masks = centre_crop(batch["masks"], logits.shape[-2:])
        counts = count_pixels(logits.argmax(dim=1), masks, len(self.classes))
        metrics["loss"].update(self._losses(logits, masks)["loss"], weight=len(masks))
        metrics["pixels"].update(counts)
        rows = []
        for index, dice in zip(batch["indices"].tolist(), counts.dice().tolist(), strict=True):
            named = self._named(dice)
            defined = [value for value in named.values() if value is not None]
            rows.append({"index": index, "dice": sum(defined) / len(defined) if defined else None, **named})
        return rows

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute `loss`, `dice`, `iou` and `dice_<class>` of every foreground class that is defined."""
        counts: OverlapCounts = metrics["pixels"].compute()
        dice, iou = counts.dice(), counts.iou()
        return {
            "loss": float(metrics["loss"].compute()),
            "dice": float(dice[1:].nanmean().nan_to_num(0.0)),
            "iou": float(iou[1:].nanmean().nan_to_num(0.0)),
            **{name: value for name, value in self._named(dice.tolist()).items() if value is not None},
        }

    def _named(self, dice: list[float]) -> dict[str, float | None]:
        foreground = zip(self.classes[1:], dice[1:], strict=True)
        return {f"dice_{name}": None if math.isnan(value) else value for name, value in foreground}

    @torch.no_grad()
    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw test images with truth and prediction over them, and how Dice spreads over the images."""
        from convatlas.tasks.figures import masked_images, spreads

        training = self.net.training
        self.net.eval()
        logits = self.net(batch["images"].to(self.device))
        self.net.train(training)
        size = logits.shape[-2:]
        images, masks = centre_crop(batch["images"], size), centre_crop(batch["masks"], size)
        columns = {name: predictions[f"dice_{name}"].dropna() for name in self.classes[1:]}
        return {
            "samples": masked_images(images, masks, logits.argmax(dim=1), self.classes),
            "dice": spreads(columns, "Dice of an image"),
        }


class OverlapCounts(NamedTuple):
    """Pixels `(..., classes)` that prediction and truth share, that are predicted, and that are true."""

    shared: Tensor
    predicted: Tensor
    true: Tensor

    def dice(self) -> Tensor:
        """Return `2 * shared / (predicted + true)`, NaN where a class is in neither."""
        return 2 * self.shared / (self.predicted + self.true)

    def iou(self) -> Tensor:
        """Return `shared / (predicted + true - shared)`, NaN where a class is in neither."""
        return self.shared / (self.predicted + self.true - self.shared)


def count_pixels(predictions: Tensor, masks: Tensor, classes: int) -> OverlapCounts:
    """Count the pixels of each image and class; both maps are `(B, H, W)` class numbers, the counts `(B, classes)`."""
    predicted = [predictions == number for number in range(classes)]
    true = [masks == number for number in range(classes)]
    shared = [p & t for p, t in zip(predicted, true, strict=True)]
    return OverlapCounts(
        *(torch.stack([each.sum((1, 2)) for each in maps], dim=1) for maps in (shared, predicted, true))
    )


class PixelCounts(Metric):
    """Sums `OverlapCounts` over the images of a split, and over processes."""

    full_state_update = False
    shared: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in OverlapCounts._fields:
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: OverlapCounts) -> None:
        """Add the counts of some images, `(B, classes)`."""
        self.shared += counts.shared.sum(0)
        self.predicted += counts.predicted.sum(0)
        self.true += counts.true.sum(0)

    def compute(self) -> OverlapCounts:
        """Return the sums, `(classes,)`."""
        return OverlapCounts(self.shared, self.predicted, self.true)
