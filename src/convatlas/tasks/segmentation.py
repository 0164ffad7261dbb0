"""Segmentation: one class a pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from convatlas.core.config import RunConfig
from convatlas.models.layers.crop import centre_crop
from convatlas.tasks.base import Batch, Columns, Task, on_cpu
from convatlas.tasks.classification import check_class_weights, check_logits
from convatlas.tasks.hausdorff import DistanceMeans, hausdorff_distances
from convatlas.tasks.losses import check_terms, edge_loss, soft_dice_loss, weighted_sum
from convatlas.tasks.predicting import PALETTE, canvas_of, normalised, picture_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from convatlas.data.card import Card
    from convatlas.data.squares import Geometry


OWN_METRICS = ("loss", "pixels", "edges", "distances")


class Inspection(Protocol):
    """What a net shows of images: logits, edges `(B, 1, H, W)` as logits or None, and maps of attention."""

    @property
    def logits(self) -> Tensor:
        """`(B, classes, H, W)`."""

    @property
    def edges(self) -> Tensor | None:
        """`(B, 1, H, W)` logits of lying at the edge of a class."""

    @property
    def attention(self) -> tuple[Tensor, ...]:
        """`(B, 1, h, w)` each, from 0 to 1."""


@runtime_checkable
class Inspectable(Protocol):
    """A net that shows more than its logits, such as SAUNet."""

    def inspect(self, images: Tensor) -> Inspection:
        """Run the net on `(B, C, H, W)`."""


class SegmentationTask(Task):
    """Cross-entropy, soft Dice and, of nets that predict edges, theirs; Dice, IoU and Hausdorff distance of classes.

    The loss is `cross_entropy + dice + edge`, each with its weight in `recipe.loss.auxiliary` (1 where it has none
    there, 0 switches it off). Dice and IoU are those of a whole split: pixels are counted over all images, then divided
    once, so that they do not depend on the batches. A class that neither truth nor prediction has anywhere is not
    defined: it has no value and does not enter the mean; where no class is defined the mean is 0, which is never the
    best epoch.

    The Hausdorff distance of a class is the mean over images in which truth or prediction has it, in `mm` where the
    data know the size of their pixels, otherwise in `px`. Where only one of the two has it, the distance is the image's
    diagonal.

    A net whose output is smaller than its input (unpadded convolutions) is trained and judged on the middle of the
    mask, cut to the output's size.

    The recipe's loss is called with logits `(B, classes, H, W)` and class numbers `(B, H, W)`. Metrics are updated with
    predicted and true class numbers, `(B, H, W)` each.

    Raises:
        UserError: class weights are not as many as the classes.
    """

    name = "segmentation"
    score = "dice"

    def __init__(
        self, net: nn.Module, config: RunConfig, classes: list[str], seed: int, metrics: Mapping[str, Metric]
    ) -> None:
        super().__init__(net, config, classes, seed, metrics)
        check_class_weights(self.loss_function, classes)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss and its terms."""
        output = self.net(batch["images"])
        if isinstance(output, Tensor):
            return self._losses(output, None, batch)
        return self._losses(output.logits, output.edges, batch)

    def _losses(self, logits: Tensor, edges: Tensor | None, batch: Batch) -> dict[str, Tensor]:
        size = logits.shape[-2:]
        masks = centre_crop(batch["masks"], size)
        terms = {
            "cross_entropy": self.loss_function(logits, masks),
            "dice": soft_dice_loss(logits.float().softmax(dim=1), masks),
        }
        if edges is not None:
            terms["edge"] = edge_loss(edges, centre_crop(batch["edges"], size))
        return {"loss": weighted_sum(terms, self.term_weights), **terms}

    def own_metrics(self) -> dict[str, Metric]:
        """Make what Dice, IoU and distances are computed from."""
        classes = len(self.classes)
        return {
            "loss": MeanMetric(nan_strategy="disable"),
            "pixels": PixelCounts(classes),
            "edges": PixelCounts(2),
            "distances": DistanceMeans(classes),
        }

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> Evaluated:
        """Update the metrics; returns the pixels of each image that count, and its distances."""
        logits, edges = self._run(batch["images"])
        masks = centre_crop(batch["masks"], logits.shape[-2:])
        predictions = logits.argmax(dim=1).where(masks >= 0, masks)  # what nobody marked is neither right nor wrong
        counts = count_pixels(predictions, masks, len(self.classes))
        unit = "mm" if "spacing" in batch else "px"
        distances = hausdorff_distances(predictions, masks, len(self.classes), batch.get("spacing"))
        metrics["loss"].update(self._losses(logits, edges, batch)["loss"], weight=len(masks))
        metrics["pixels"].update(counts)
        metrics["distances"].update(distances, unit)
        if edges is not None:
            metrics["edges"].update(count_pixels(edges[:, 0] > 0, batch["edges"][:, 0] > 0, 2))
        for metric in self._others(metrics).values():
            known = masks >= 0
            metric.update(*((predictions, masks) if known.all() else (predictions[known], masks[known])))
        return Evaluated(counts, distances, unit)

    def columns(self, batch: Batch, evaluated: Any) -> Columns:
        """Return each image's index, its mean Dice and distance, and those of the classes.

        Of a class that neither the image's truth nor its prediction has they are None; so is a mean if all are.
        """
        counts, distances, unit = evaluated
        rows = [
            {**self._row("dice", dice), **self._row(f"hausdorff_{unit}", distance)}
            for dice, distance in zip(counts.dice()[:, 1:].tolist(), distances.tolist(), strict=True)
        ]
        return {
            "index": on_cpu(batch["indices"]),
            **{name: [row[name] for row in rows] for name in rows[0]},
            "counts": on_cpu(torch.stack([each[:, 1:] for each in counts], dim=1)),
        }

    def complete(self, columns: Columns) -> Columns:
        """Put `part_dice` in the place of the counts: the derivative of the mean Dice by the weight of the image.

        Of `2 S / A`, summed over images, that is `N (2 s - dice * a) / A`, with `s` and `a` of the image alone.
        """
        others = {name: column for name, column in columns.items() if name != "counts"}
        images = len(columns["index"])
        shared, predicted, true = np.moveaxis(columns["counts"].astype(np.float64), 1, 0)
        area = predicted + true
        used = area.sum(axis=0) > 0
        shared, area = shared[:, used], area[:, used]
        dice = 2 * shared.sum(axis=0) / area.sum(axis=0)
        parts = images * (2 * shared - dice * area) / area.sum(axis=0)
        return {**others, "part_dice": parts.mean(axis=1) if used.any() else np.zeros(images)}

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits and, of nets that predict them, the logits of edges."""
        if isinstance(self.net, Inspectable):
            inspected = self.net.inspect(images)
            return inspected.logits.float(), inspected.edges
        return self.net(images).float(), None

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute the loss, and Dice, IoU and Hausdorff distance, Dice and distance also of every foreground class."""
        counts: OverlapCounts = metrics["pixels"].compute()
        dice, iou = counts.dice()[1:], counts.iou()[1:]
        distances = metrics["distances"].compute().reshape(-1)  # torchmetrics makes a scalar of a single class
        distance = f"hausdorff_{metrics['distances'].unit}"
        named = {**self._row("dice", dice.tolist()), **self._row(distance, distances.tolist())}
        found = {
            "loss": float(metrics["loss"].compute()),
            **{name: value for name, value in named.items() if value is not None},
            "dice": float(dice.nanmean().nan_to_num(0.0)),
            "iou": float(iou.nanmean().nan_to_num(0.0)),
        }
        if metrics["edges"].update_called:
            found["edge_dice"] = float(metrics["edges"].compute().dice()[1].nan_to_num(0.0))
        return found | super().summarise(self._others(metrics))

    def _others(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: metric for name, metric in metrics.items() if name not in OWN_METRICS}

    def _may_come(self, monitor: str) -> bool:
        units = ("dice", "hausdorff_px", "hausdorff_mm")
        names = {"hausdorff_mm", *(f"{unit}_{label}" for unit in units for label in self.classes[1:])}
        return monitor.removeprefix("val/") in names | ({"edge_dice"} if isinstance(self.net, Inspectable) else set())

    def _row(self, name: str, values: list[float]) -> dict[str, float | None]:
        """Name the values of the foreground classes and their mean; what is not finite is None."""
        defined = [value for value in values if not math.isnan(value)]
        each = zip(self.classes[1:], values, strict=True)
        return {
            name: sum(defined) / len(defined) if defined else None,
            **{f"{name}_{label}": None if math.isnan(value) else value for label, value in each},
        }

    def example_targets(self, size: int) -> Batch:
        """Return the mask of one image, and its edges."""
        return {"masks": torch.zeros(1, size, size, dtype=torch.int64), "edges": torch.zeros(1, 1, size, size)}

    def check_answer(self, images: Tensor) -> None:
        """Raise UserError unless there is one map of logits for each class, and the recipe weighs terms that exist."""
        logits, edges = self._run(images)
        check_logits(logits, 4, self.classes)
        check_terms(self.term_weights, ["cross_entropy", "dice", *([] if edges is None else ["edge"])])

    def answers(self, images: Tensor, card: Card) -> list[Any]:
        """Return the probabilities of each image, `(classes, S, S)` or less."""
        return [*self.net(normalised(images, self.config.data, card)).softmax(dim=1).cpu()]

    def read(self, answer: Any, geometry: Geometry, size: tuple[int, int]) -> tuple[dict[str, Any], Any]:
        """Return the pixels of each class in one image, and the classes `(H, W)`; what the net does not see is 0."""
        margin = (self.config.data.image_size - answer.shape[-1]) // 2  # an unpadded U-Net leaves the border out
        numbers = geometry.maps_back(F.pad(answer, (margin,) * 4), size).argmax(dim=0)
        counts = torch.bincount(numbers.flatten(), minlength=len(self.classes)).tolist()
        return {"pixels": dict(zip(self.classes, counts, strict=True))}, numbers

    def mask(self, answer: Any) -> NDArray[np.uint8]:
        """Return the classes `(H, W)`."""
        classes: NDArray[np.uint8] = answer.numpy().astype(np.uint8)
        return classes

    def draw(self, pixels: NDArray[np.uint8], answer: Any, row: Mapping[str, Any]) -> Image:
        """Draw the classes over the image, each in its colour."""
        from torchvision.utils import draw_segmentation_masks

        canvas, factor = canvas_of(pixels)
        enlarged = answer.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        masks = torch.stack([enlarged == number for number in range(1, len(self.classes))])
        colours = [PALETTE[number % len(PALETTE)] for number in range(len(masks))]
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.5, colors=colours)
        return picture_of(canvas)

    @torch.no_grad()
    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw test images with truth and prediction over them, what the net shows of them, and how values spread."""
        from convatlas.tasks.figures import inspected_images, masked_images, picture_channels, spreads

        training = self.net.training
        self.net.eval()
        images = batch["images"].to(self.device)
        inspected = self.net.inspect(images) if isinstance(self.net, Inspectable) else None
        logits = self.net(images) if inspected is None else inspected.logits
        self.net.train(training)
        size, predicted = logits.shape[-2:], logits.argmax(dim=1)
        pictures = picture_channels(centre_crop(batch["images"], size))
        figures = {
            "samples": masked_images(pictures, centre_crop(batch["masks"], size).clamp_min(0), predicted, self.classes)
        }
        if inspected is not None and (inspected.edges is not None or inspected.attention):
            edges = None if inspected.edges is None else (batch["edges"], inspected.edges.sigmoid())
            figures["shapes"] = inspected_images(pictures, edges, inspected.attention)
        for name, label in (
            ("dice", "Dice of an image"),
            ("hausdorff_px", "Hausdorff distance (pixels)"),
            ("hausdorff_mm", "Hausdorff distance (mm)"),
        ):
            if name in predictions:
                columns = {each: predictions[f"{name}_{each}"].dropna() for each in self.classes[1:]}
                figures[name] = spreads(columns, label)
        return figures


class Evaluated(NamedTuple):
    """What the table of a test batch is made of.

    Attributes:
        counts: of each image, `(B, classes)`.
        distances: `(B, classes - 1)`, see `hausdorff_distances`.
        unit: of the distances, "px" or "mm".
    """

    counts: OverlapCounts
    distances: Tensor
    unit: str


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
