"""Classification: one class an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from convatlas.models.interfaces import Invertible, auxiliary_loss_weights
from convatlas.tasks.base import Batch, Task
from convatlas.tasks.losses import mixed_cross_entropy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class ClassificationTask(Task):
    """Cross-entropy with label smoothing; accuracy top-1 and top-5, macro F1, expected calibration error.

    Of an image that is mixed with another (mixup, CutMix) both labels count, each with its share. Evaluation sees no
    mixed images, so its figures are of the images as they are.

    A net with auxiliary classifiers returns `(logits, auxiliary)` in training and says in
    `auxiliary_loss_weights` how much each of them counts.
    """

    monitor = "val/accuracy"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, and that of each auxiliary classifier."""
        output = self.net(batch["images"])
        if isinstance(output, Tensor):
            return {"loss": self._cross_entropy(output, batch)}
        main = self._cross_entropy(output.logits, batch)
        terms = {"main": main}
        total = main
        weights = auxiliary_loss_weights(self.net)
        for number, (weight, logits) in enumerate(zip(weights, output.auxiliary, strict=True), start=1):
            terms[f"auxiliary_{number}"] = self._cross_entropy(logits, batch)
            total = total + weight * terms[f"auxiliary_{number}"]
        return {"loss": total, **terms}

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        smoothing = self.config.recipe.loss.label_smoothing
        if "partner_labels" not in batch:
            return F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
        return mixed_cross_entropy(logits, batch["labels"], batch["partner_labels"], batch["label_shares"], smoothing)

    def new_metrics(self) -> dict[str, Metric]:
        """Make the metrics; top-5 only where there are more than five classes."""
        classes = len(self.classes)
        metrics: dict[str, Metric] = {
            "loss": MeanMetric(),
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
            "f1_macro": MulticlassF1Score(classes, average="macro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(classes, n_bins=15, validate_args=False),
        }
        if classes > 5:
            metrics["accuracy_top5"] = MulticlassAccuracy(classes, top_k=5, average="micro", validate_args=False)
        return metrics

    def evaluate(self, batch: Batch, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Update the metrics; a row holds the image's index, label, prediction and the probability of each class."""
        logits = self.net(batch["images"]).float()
        labels = batch["labels"]
        probabilities = logits.softmax(dim=1)
        metrics["loss"].update(F.cross_entropy(logits, labels), weight=len(labels))
        for name, metric in metrics.items():
            if name != "loss":
                metric.update(probabilities, labels)
        confidence, prediction = probabilities.max(dim=1)
        return [
            {"index": index, "label": label, "prediction": predicted, "confidence": sure, "probabilities": each}
            for index, label, predicted, sure, each in zip(
                batch["indices"].tolist(),
                labels.tolist(),
                prediction.tolist(),
                confidence.tolist(),
                probabilities.tolist(),
                strict=True,
            )
        ]

    def figures(self, batch: Batch, predictions: pd.DataFrame) -> dict[str, Figure]:
        """Draw the confusion matrix, and test images with the class they were given."""
        from convatlas.tasks.figures import confusion_matrix, labelled_images

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
        if self.config.recipe.activation_maps:
            from convatlas.tasks.activation_maps import activation_map_figure

            figures["class_activation_maps"] = activation_map_figure(self.net, batch["images"], self.classes)
        return figures


def top_classes(logits: Tensor, classes: list[str], how_many: int = 5) -> list[list[dict[str, Any]]]:
    """Return the most probable classes of each image with their probabilities, best first."""
    probabilities, numbers = logits.softmax(dim=1).topk(min(how_many, len(classes)), dim=1)
    return [
        [{"class": classes[n], "probability": p} for p, n in zip(ps, ns, strict=True)]
        for ps, ns in zip(probabilities.tolist(), numbers.tolist(), strict=True)
    ]
