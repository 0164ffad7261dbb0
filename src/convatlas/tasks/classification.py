"""Classification: one class an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from convatlas.core.config import RunConfig
from convatlas.core.errors import UserError
from convatlas.models.interfaces import Invertible, auxiliary_loss_weights
from convatlas.tasks.base import Batch, Columns, Task, on_cpu
from convatlas.tasks.losses import CrossEntropy, check_terms
from convatlas.tasks.predicting import canvas_of, normalised, picture_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from convatlas.data.card import Card
    from convatlas.data.squares import Geometry

LISTED_CLASSES = 5
"""Classes that a prediction lists with their probabilities."""


class ClassificationTask(Task):
    """Cross-entropy with label smoothing; accuracy top-1 and top-5, macro F1, expected calibration error.

    Of an image that is mixed with another (mixup, CutMix) both labels count, each with its share. Evaluation sees no
    mixed images, so its figures are of the images as they are, and its loss has neither smoothing nor weights.
    A loss of another package gets logits and class numbers, or for mixed images the shares of all classes.

    A net with auxiliary classifiers returns `(logits, auxiliary)` in training and says in
    `auxiliary_loss_weights` how much each of them counts; `recipe.loss.auxiliary` may say otherwise.

    Metrics are updated with probabilities `(B, classes)` and class numbers `(B,)`.

    Raises:
        UserError: a weight belongs to no term, or class weights do not fit.
    """

    name = "classification"
    score = "accuracy"
    has_image_logits = True

    def __init__(
        self, net: nn.Module, config: RunConfig, classes: list[str], seed: int, metrics: Mapping[str, Metric]
    ) -> None:
        top5 = "accuracy_top5" if len(classes) <= 5 else None
        super().__init__(net, config, classes, seed, {name: m for name, m in metrics.items() if name != top5})
        net_weights = enumerate(auxiliary_loss_weights(net), start=1)
        self.auxiliary_weights = {f"auxiliary_{number}": weight for number, weight in net_weights}
        check_terms(self.term_weights, self.auxiliary_weights)
        self.auxiliary_weights |= self.term_weights
        check_class_weights(self.loss_function, classes)
        augmentation = config.recipe.augmentation
        if getattr(self.loss_function, "weight", None) is not None and (augmentation.mixup or augmentation.cutmix):
            raise UserError("recipe.loss.class_weights does not go with mixup or CutMix, which mix classes; drop one.")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, and that of each auxiliary classifier."""
        output = self.net(batch["images"])
        if isinstance(output, Tensor):
            return {"loss": self._loss(output, batch)}
        terms = {"main": self._loss(output.logits, batch)}
        total = terms["main"]
        for (name, weight), logits in zip(self.auxiliary_weights.items(), output.auxiliary, strict=True):
            terms[name] = self._loss(logits, batch)
            total = total + weight * terms[name]
        return {"loss": total, **terms}

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        labels = batch["labels"]
        if "partner_labels" not in batch:
            loss: Tensor = self.loss_function(logits, labels)
            return loss
        partners, shares = batch["partner_labels"], batch["label_shares"]
        if isinstance(self.loss_function, CrossEntropy):
            return self.loss_function.mixed(logits, labels, partners, shares)
        own, other = (F.one_hot(numbers, logits.shape[1]).to(shares.dtype) for numbers in (labels, partners))
        mixed: Tensor = self.loss_function(logits, shares[:, None] * own + (1 - shares[:, None]) * other)
        return mixed

    def own_metrics(self) -> dict[str, Metric]:
        """Make the mean of the loss."""
        return {"loss": MeanMetric(nan_strategy="disable")}

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> Tensor:
        """Update the metrics; returns the probabilities `(B, classes)`."""
        logits = self.net(batch["images"]).float()
        labels = batch["labels"]
        probabilities = logits.softmax(dim=1)
        ours = isinstance(self.loss_function, CrossEntropy)
        loss = F.cross_entropy(logits, labels) if ours else self.loss_function(logits, labels)
        metrics["loss"].update(loss, weight=len(labels))
        for name, metric in metrics.items():
            if name != "loss":
                metric.update(probabilities, labels)
        return probabilities

    def columns(self, batch: Batch, evaluated: Any) -> Columns:
        """Return each image's index, label, prediction, the probability of that class, and of each class."""
        confidence, prediction = evaluated.max(dim=1)
        return {
            "index": on_cpu(batch["indices"]),
            "label": on_cpu(batch["labels"]),
            "prediction": on_cpu(prediction),
            "confidence": on_cpu(confidence.double()),
            "probabilities": on_cpu(evaluated),
        }

    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw the confusion matrix and test images with the class they were given.

        Where the net allows it there are the kernels of its first layer and class activation maps, too.
        """
        from convatlas.tasks.activation_maps import activation_map_figure
        from convatlas.tasks.figures import confusion_matrix, first_filters, labelled_images, mosaic

        rows = predictions.set_index("index").loc[batch["indices"].tolist()]
        titles = [f"{self.classes[p]}" for p in rows["prediction"]]
        right = (rows["prediction"] == rows["label"]).tolist()
        figures = {
            "confusion_matrix": confusion_matrix(predictions["label"], predictions["prediction"], self.classes),
            "samples": labelled_images(batch["images"], titles, right),
        }
        if isinstance(self.net, Invertible):
            from convatlas.tasks.reconstruction import interpolation_figure, reconstruction_figure

            images = batch["images"]
            figures["reconstruction"] = reconstruction_figure(self.net, images[:8])
            figures["interpolation"] = interpolation_figure(self.net, images[0], images[-1])
        if (filters := first_filters(self.net)) is not None:
            figures["first_filters"] = mosaic(filters, columns=16, side=0.5)
        try:
            figures["class_activation_maps"] = activation_map_figure(self.net, batch["images"], self.classes)
        except UserError:  # the net has no such maps
            if self.config.recipe.activation_maps:
                raise
        return figures

    def example_targets(self, size: int) -> Batch:
        """Return the label of one image."""
        return {"labels": torch.zeros(1, dtype=torch.int64)}

    def check_answer(self, images: Tensor) -> None:
        """Raise UserError unless there is one logit for each class."""
        check_logits(self.net(images), 2, self.classes)

    def answers(self, images: Tensor, card: Card) -> list[Any]:
        """Return the probabilities of each image, `(classes,)`."""
        return [*self.net(normalised(images, self.config.data, card)).softmax(dim=1).cpu()]

    def read(self, answer: Any, geometry: Geometry, size: tuple[int, int]) -> tuple[dict[str, Any], Any]:
        """Return the most probable classes of one image."""
        confidence, numbers = answer.topk(min(LISTED_CLASSES, len(self.classes)))
        names = [self.classes[number] for number in numbers.tolist()]
        ranked = [{"class": name, "probability": p} for name, p in zip(names, confidence.tolist(), strict=True)]
        return {"prediction": names[0], "confidence": float(confidence[0]), "top": ranked}, None

    def draw(self, pixels: NDArray[np.uint8], answer: Any, row: Mapping[str, Any]) -> Image:
        """Write the class and its probability over the image."""
        from PIL import ImageDraw

        picture = picture_of(canvas_of(pixels)[0])
        ImageDraw.Draw(picture).text((6, 6), f"{row['prediction']} {row['confidence']:.0%}", fill="#ffb000")
        return picture


def check_class_weights(loss: nn.Module, classes: list[str]) -> None:
    """Raise UserError unless the loss weighs no class, or all of them."""
    weights = getattr(loss, "weight", None)
    if isinstance(weights, Tensor) and len(weights) != len(classes):
        raise UserError(
            f"recipe.loss.class_weights has {len(weights)} weights for {len(classes)} classes; give one for each "
            f"of {', '.join(classes)}."
        )


def check_logits(logits: Any, dimensions: int, classes: list[str]) -> None:
    """Raise UserError unless logits `(B, classes, ...)` have so many dimensions and one channel for each class."""
    if not isinstance(logits, Tensor) or logits.ndim != dimensions:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"The net answers with {shape}, where this task needs logits of {dimensions} dimensions.")
    if logits.shape[1] != len(classes):
        raise UserError(
            f"The net tells {logits.shape[1]} classes apart and the data have {len(classes)}; "
            f"set model.num_classes={len(classes)}."
        )
