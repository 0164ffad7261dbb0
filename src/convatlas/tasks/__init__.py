"""Tasks: one LightningModule each for classification, detection and segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from convatlas.core.config import RunConfig
    from convatlas.tasks.base import Task


def new_task(net: nn.Module, config: RunConfig, classes: list[str], seed: int) -> Task:
    """Put the task of the run's data around a net; only that task's file is imported."""
    if config.data.task == "classification":
        from convatlas.tasks.classification import ClassificationTask

        return ClassificationTask(net, config, classes, seed)
    if config.data.task == "detection":
        from convatlas.tasks.detection import DetectionTask

        return DetectionTask(net, config, classes, seed)
    from convatlas.tasks.segmentation import SegmentationTask

    return SegmentationTask(net, config, classes, seed)
