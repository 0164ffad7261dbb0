"""Detection: boxes and their classes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_iou

from convatlas.tasks.base import Batch, Task
from convatlas.tasks.losses import weighted_sum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision and recall, `(n,)` each."""

MOST_DETECTIONS = 100
"""COCO's figures are defined for so many detections an image, of all classes; the surest are kept."""
SHOWN_SCORE = 0.5
"""Detections that are less sure are not drawn."""


class DetectionTask(Task):
    """A detector of torchvision's convention; mean average precision as COCO defines it.

    The net computes its loss terms in training; they are added up with the weights in `recipe.loss.auxiliary` (1 where
    a term has none there). COCO's figures are -1 where a split holds no object at all.
    """

    monitor = "val/map_50"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the net's loss terms and their weighted sum."""
        terms = self.net(list(batch["images"]), batch["targets"])
        return {"loss": weighted_sum(terms, self.config.recipe.loss.auxiliary), **terms}

    def new_metrics(self) -> dict[str, Metric]:
        """Make the one metric that all figures come from."""
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it tells all figures at each evaluation
        metric = MeanAveragePrecision(backend="faster_coco_eval", max_detection_thresholds=[1, 10, MOST_DETECTIONS])
        return {"average_precision": metric}

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Update the metric; a row holds the image's index, what was found in it and what is there."""
        found = [surest(each) for each in self.net(list(batch["images"]))]
        metrics["average_precision"].update(found, batch["targets"])
        return [
            {
                "index": index,
                "boxes": each["boxes"].tolist(),
                "scores": each["scores"].tolist(),
                "labels": each["labels"].tolist(),
                "true_boxes": target["boxes"].tolist(),
                "true_labels": target["labels"].tolist(),
            }
            for index, each, target in zip(batch["indices"].tolist(), found, batch["targets"], strict=True)
        ]

    def summarise(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Compute average precision over IoU 0.50 to 0.95, at 0.50 and at 0.75, and recall with 100 detections."""
        values = metrics["average_precision"].compute()
        return {name: float(values[name]) for name in ("map", "map_50", "map_75", f"mar_{MOST_DETECTIONS}")}

    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw test images with true and found boxes, and precision over recall on all images, by class and pooled."""
        from convatlas.tasks.figures import boxed_images, precision_recall

        rows = predictions.set_index("index").loc[batch["indices"].tolist()].to_dict("records")
        hits = gather_hits(predictions.to_dict("records"))
        return {
            "samples": boxed_images(
                batch["images"],
                [(as_boxes(row["true_boxes"]), self._named(row["true_labels"])) for row in rows],
                [self._shown(row) for row in rows],
            ),
            "precision_recall": precision_recall(hits.curve(), hits.by_class(self.classes), "IoU 0.5 or more"),
        }

    def _named(self, labels: Iterable[int]) -> list[str]:
        return [self.classes[label] for label in labels]

    def _shown(self, row: Mapping[str, Any]) -> tuple[NDArray[np.float32], list[str]]:
        sure = np.asarray(row["scores"], dtype=np.float32) >= SHOWN_SCORE
        names = self._named(label for label, keep in zip(row["labels"], sure, strict=True) if keep)
        scores = [score for score, keep in zip(row["scores"], sure, strict=True) if keep]
        return as_boxes(row["boxes"])[sure], [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]


def surest(detections: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the surest detections of an image, the surest first."""
    order = detections["scores"].argsort(descending=True, stable=True)[:MOST_DETECTIONS]
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
        """Return precision and recall of the n surest detections, for n = 1, 2, ...; of one class, or of all pooled."""
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
        rows: as `DetectionTask.evaluate` makes them.
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


def precision_and_recall(rows: Iterable[Mapping[Any, Any]], least_overlap: float = 0.5) -> Curve:
    """Return precision and recall of the n surest detections of all images and classes, for n = 1, 2, ...

    Arguments are those of `gather_hits`.
    """
    return gather_hits(rows, least_overlap).curve()


def average_precision(curve: Curve) -> float:
    """Return the area under precision over recall as COCO has it: the mean at the recalls 0, 0.01, ..., 1.

    At a recall counts the highest precision that is reached there or at any higher recall, and 0 where it is not
    reached at all.
    """
    precision, recall = curve
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(recall, np.linspace(0, 1, 101), side="left")].mean())


def find_hits(row: Mapping[Any, Any], least_overlap: float) -> list[bool]:
    """Say of each detection of an image whether it finds an object of its class, the one it overlaps most.

    The detections of a row are in falling order of their scores; each object is found once.
    """
    truth = torch.from_numpy(as_boxes(row["true_boxes"]))
    overlaps = box_iou(torch.from_numpy(as_boxes(row["boxes"])), truth).numpy()
    labels, true_labels = np.asarray(row["labels"]), np.asarray(row["true_labels"])
    overlaps[labels.reshape(-1, 1) != true_labels.reshape(1, -1)] = 0
    hits = []
    for number in range(len(labels)):
        best = int(overlaps[number].argmax()) if len(true_labels) else -1
        hit = best >= 0 and bool(overlaps[number, best] >= least_overlap)
        if hit:
            overlaps[:, best] = 0
        hits.append(hit)
    return hits
