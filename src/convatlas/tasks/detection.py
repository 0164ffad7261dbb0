"""Detection: boxes and their classes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.ops import box_iou, clip_boxes_to_image

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.tasks.base import Batch, Columns, Task, on_cpu, rows_of
from convatlas.tasks.losses import CrossEntropy, weighted_sum
from convatlas.tasks.predicting import PALETTE, canvas_of, picture_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from convatlas.data.card import Card
    from convatlas.data.squares import Geometry
    from convatlas.tasks.figures import Judged

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision and recall, `(n,)` each."""

MAX_DETECTIONS = 100
"""COCO's figures are defined for so many detections an image, of all classes; those of the highest scores are kept."""
SHOWN_SCORE = 0.5
"""Detections of a lower score are not drawn in figures."""
LEAST_OVERLAP = 0.5
"""The IoU from which a drawn detection counts as right."""
LISTED_SCORE = 0.3
"""Detections of a lower score are not listed in predictions."""
FIGURES = ("map", "map_50", "map_75", f"mar_{MAX_DETECTIONS}")
"""Average precision over IoU 0.50 to 0.95, at 0.50 and at 0.75, and recall with 100 detections."""


class DetectionTask(Task):
    """A detector of torchvision's convention; mean average precision as COCO defines it.

    The net computes its loss terms in training; they are added up with the weights in `recipe.loss.auxiliary` (1 where
    a term has none there). COCO's figures are -1 where a split holds no object at all.

    Metrics are updated with lists of dictionaries `boxes`, `scores`, `labels`, and of `boxes`, `labels`.

    Raises:
        UserError: the recipe's loss is another than the nets' own.
    """

    name = "detection"
    score = "map_50"

    def __init__(
        self, net: nn.Module, config: RunConfig, classes: list[str], seed: int, metrics: Mapping[str, Metric]
    ) -> None:
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it prints all figures at each evaluation
        super().__init__(net, config, classes, seed, metrics)
        loss = self.loss_function
        if not isinstance(loss, CrossEntropy) or loss.weight is not None or loss.label_smoothing:
            raise UserError(
                "recipe.loss: detectors compute their losses themselves; leave _target_, label_smoothing and "
                "class_weights as they are. recipe.loss.auxiliary weighs their terms."
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the net's loss terms and their weighted sum."""
        terms = self.net(list(batch["images"]), batch["targets"])
        return {"loss": weighted_sum(terms, self.term_weights), **terms}

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Update the metric; returns what was found in each image."""
        found = [top_scoring(each) for each in self.net(list(batch["images"]))]
        for metric in metrics.values():
            metric.update(found, batch["targets"])
        return found

    def columns(self, batch: Batch, evaluated: Any) -> Columns:
        """Return each image's index, what was found in it and what is there."""
        targets = batch["targets"]
        return {
            "index": on_cpu(batch["indices"]),
            **{name: [on_cpu(each[name]) for each in evaluated] for name in ("boxes", "scores", "labels")},
            **{f"true_{name}": [on_cpu(each[name]) for each in targets] for name in ("boxes", "labels")},
        }

    def complete(self, columns: Columns) -> Columns:
        """Add `part_map_50`: by how much mAP50 would fall without the image (jackknife, see `left_out`)."""
        return {**columns, "part_map_50": np.asarray(left_out(rows_of(columns)), dtype=np.float64)}

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute `FIGURES`, and the metrics beside average precision."""
        values = metrics["average_precision"].compute()
        others = {name: metric for name, metric in metrics.items() if name != "average_precision"}
        return {**{name: float(values[name]) for name in FIGURES}, **super().summarise(others)}

    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw test images with their boxes, and precision over recall on all images, by class and pooled."""
        from convatlas.tasks.figures import boxed_images, precision_recall

        rows = predictions.set_index("index").loc[batch["indices"].tolist()].to_dict("records")
        hits = gather_hits(predictions.to_dict("records"))
        return {
            "samples": boxed_images(batch["images"], [self._judged(row) for row in rows]),
            "precision_recall": precision_recall(hits.curve(), hits.by_class(self.classes), "IoU 0.5 or more"),
        }

    def example_targets(self, size: int) -> Batch:
        """Return the targets of one image without objects."""
        return {"targets": [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]}

    def check_answer(self, images: Tensor) -> None:
        """Raise UserError unless the net takes the images and has the loss terms that the recipe weighs."""
        self.net(list(images))
        if self.term_weights:
            targets = self.example_targets(images.shape[-1])["targets"] * 2
            self.net.train()
            self.losses({"images": images.repeat(2, 1, 1, 1), "targets": targets})
            self.net.eval()

    def try_size(self, channels: int, size: int) -> None:
        """Run the net in training, since in evaluation it may resize; images have no objects."""
        targets = self.example_targets(size)["targets"] * 2
        with torch.no_grad():
            self.net.train()([torch.zeros(channels, size, size)] * 2, targets)

    def answers(self, images: Tensor, card: Card) -> list[Any]:
        """Return what was found in each image."""
        return [{name: each.cpu() for name, each in found.items()} for found in self.net(list(images))]

    def read(self, answer: Any, geometry: Geometry, size: tuple[int, int]) -> tuple[dict[str, Any], Any]:
        """Return the objects in one image."""
        kept = answer["scores"] >= LISTED_SCORE
        boxes = clip_boxes_to_image(geometry.back(answer["boxes"][kept]), size)
        labels, scores = answer["labels"][kept], answer["scores"][kept]
        listed = [
            {"class": self.classes[number], "score": score, "box": box}
            for number, score, box in zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        ]
        return {"objects": listed, "count": len(listed)}, boxes

    def draw(self, pixels: NDArray[np.uint8], answer: Any, row: Mapping[str, Any]) -> Image:
        """Draw the boxes with their classes and scores over the image."""
        from torchvision.utils import draw_bounding_boxes

        canvas, factor = canvas_of(pixels)
        if row["objects"]:
            names = [f"{o['class']} {o['score']:.2f}" for o in row["objects"]]
            colours = [PALETTE[self.classes.index(o["class"]) % len(PALETTE)] for o in row["objects"]]
            canvas = draw_bounding_boxes(canvas, answer * factor, names, colours, width=2)
        return picture_of(canvas)

    def _named(self, labels: Iterable[int]) -> list[str]:
        return [self.classes[label] for label in labels]

    def _judged(self, row: Mapping[str, Any]) -> Judged:
        """Return what is drawn of a row: its objects, and its detections of `SHOWN_SCORE` or more."""
        from convatlas.tasks.figures import Judged

        sure = np.flatnonzero(np.asarray(row["scores"], dtype=np.float32) >= SHOWN_SCORE)
        drawn = {name: [row[name][place] for place in sure] for name in ("boxes", "scores", "labels")}
        found = find_objects({**row, **drawn}, LEAST_OVERLAP)
        names = [
            f"{name} {score:.2f}" for name, score in zip(self._named(drawn["labels"]), drawn["scores"], strict=True)
        ]
        missed = [place not in found for place in range(len(row["true_labels"]))]
        true = as_boxes(row["true_boxes"]), self._named(row["true_labels"])
        return Judged(true, (as_boxes(drawn["boxes"]), names), [each is not None for each in found], missed)


def top_scoring(detections: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the detections of an image with the highest scores, in falling order."""
    order = detections["scores"].argsort(descending=True, stable=True)[:MAX_DETECTIONS]
    return {
        "boxes": detections["boxes"][order].float(),
        "scores": detections["scores"][order].float(),
        "labels": detections["labels"][order],
    }


def as_boxes(values: Iterable[Iterable[float]]) -> NDArray[np.float32]:
    """Return boxes `(n, 4)` from a row's nested lists, which Parquet gives back as arrays of arrays."""
    return np.array([list(box) for box in values], dtype=np.float32).reshape(-1, 4)


# ---- precision and recall -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """All detections of all images, and which of them find an object.

    Attributes:
        scores: `(n,)` float.
        labels: `(n,)` int, class numbers.
        hits: `(n,)` bool.
        true_labels: `(m,)` int, the class numbers of all objects.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    hits: NDArray[np.bool_]
    true_labels: NDArray[np.int64]

    def curve(self, label: int | None = None) -> Curve:
        """Return precision and recall of the n top-scoring detections, n = 1, 2, ...; of one class, or all pooled."""
        chosen = np.ones(len(self.labels), dtype=bool) if label is None else self.labels == label
        objects = len(self.true_labels) if label is None else int((self.true_labels == label).sum())
        order = np.argsort(-self.scores[chosen], kind="stable")
        found = np.cumsum(self.hits[chosen][order], dtype=np.int64)
        return found / np.arange(1, len(found) + 1), found / max(1, objects)

    def by_class(self, classes: Sequence[str]) -> dict[str, Curve]:
        """Return the curve of each class that has an object, by its name."""
        return {classes[label]: self.curve(label) for label in np.unique(self.true_labels).tolist()}


def gather_hits(rows: Iterable[Mapping[Any, Any]], least_overlap: float = 0.5) -> Hits:
    """Compare what was found with what is there.

    Args:
        rows: as `DetectionTask.columns` has them.
        least_overlap: IoU from which a detection finds an object of its class.
    """
    rows = list(rows)

    def joined(key: str, dtype: type) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=dtype), *(np.asarray(row[key], dtype=dtype) for row in rows)])

    hits = [hit for row in rows for hit in find_hits(row, least_overlap)]
    return Hits(
        scores=joined("scores", np.float64),
        labels=joined("labels", np.int64),
        hits=np.array(hits, dtype=bool),
        true_labels=joined("true_labels", np.int64),
    )


def average_precision(curve: Curve) -> float:
    """Return the area under precision over recall as COCO has it: the mean at the recalls 0, 0.01, ..., 1.

    At a recall counts the highest precision that is reached there or at any higher recall, and 0 where it is not
    reached at all.
    """
    precision, recall = curve
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())


def left_out(rows: Sequence[Mapping[Any, Any]]) -> NDArray[np.float64]:
    """Return for each image by how much mAP50 falls without it, times their number less one; `(N,)`.

    A class without objects in any image does not enter the mean, as COCO has it.
    """
    hits = gather_hits(rows)
    of_found = np.repeat(np.arange(len(rows)), [len(row["labels"]) for row in rows])
    of_true = np.repeat(np.arange(len(rows)), [len(row["true_labels"]) for row in rows])
    order = np.argsort(-hits.scores, kind="stable")
    classes = np.unique(hits.true_labels)

    def precision_of(ranks: NDArray[np.int64], objects: int) -> float:
        """Precision is highest where a detection finds an object, so those tell all."""
        found = np.arange(1, len(ranks) + 1)
        return average_precision((found / ranks, found / objects)) if objects else math.nan

    parts = np.zeros((len(rows), len(classes)))
    for column, label in enumerate(classes.tolist()):
        chosen = order[hits.labels[order] == label]
        images, ranks = of_found[chosen], np.flatnonzero(hits.hits[chosen]) + 1
        objects = np.bincount(of_true[hits.true_labels == label], minlength=len(rows))
        total = int(objects.sum())
        whole = precision_of(ranks, total)
        for image in np.union1d(images, np.flatnonzero(objects)).tolist():
            others = ranks[images[ranks - 1] != image]
            before = np.searchsorted(np.flatnonzero(images == image) + 1, others)  # detections that are gone
            parts[image, column] = (len(rows) - 1) * (whole - precision_of(others - before, total - objects[image]))
    return np.nan_to_num(parts).mean(axis=1) if len(classes) else np.zeros(len(rows))


def find_hits(row: Mapping[Any, Any], least_overlap: float) -> list[bool]:
    """Say of each detection of an image whether it finds an object; see `find_objects`."""
    return [found is not None for found in find_objects(row, least_overlap)]


def find_objects(row: Mapping[Any, Any], least_overlap: float) -> list[int | None]:
    """Return for each detection of an image the object of its class that it finds, the one it overlaps most, or None.

    The detections of a row are in falling order of their scores; each object is found once.
    """
    truth = torch.from_numpy(as_boxes(row["true_boxes"]))
    overlaps = box_iou(torch.from_numpy(as_boxes(row["boxes"])), truth).numpy()
    labels, true_labels = np.asarray(row["labels"]), np.asarray(row["true_labels"])
    overlaps[labels.reshape(-1, 1) != true_labels.reshape(1, -1)] = 0
    objects: list[int | None] = []
    for number in range(len(labels)):
        best = int(overlaps[number].argmax()) if len(true_labels) else -1
        hit = best >= 0 and bool(overlaps[number, best] >= least_overlap)
        if hit:
            overlaps[:, best] = 0
        objects.append(best if hit else None)
    return objects
