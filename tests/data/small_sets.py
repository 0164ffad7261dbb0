"""Small data sets of each task, made of random pixels, and the configurations that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convatlas.core.config import Augmentation, DataConfig, SplitConfig
from convatlas.data.raw import RawDataset

SOURCE = "small_sets.not_called"


def raw_images(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def raw_classification(count: int = 60, classes: int = 3, **other: Any) -> RawDataset:
    arguments: dict[str, Any] = {
        "images": raw_images(count),
        "classes": [f"class {number}" for number in range(classes)],
        "title": "random pixels",
        "origin": "a test",
        "licence": "none",
        "made": True,
        "labels": np.arange(count, dtype=np.int64) % classes,
    }
    return RawDataset(**(arguments | other))


def raw_segmentation(count: int = 30, classes: int = 4, side: int = 8) -> RawDataset:
    masks = np.random.default_rng(1).integers(0, classes, (count, side, side), dtype=np.uint8)
    return raw_classification(count, classes, labels=None, masks=masks, images=raw_images(count, side))


def raw_detection(count: int = 30, classes: int = 3, side: int = 8) -> RawDataset:
    """Image i holds i % 3 boxes, so that some are empty."""
    rng = np.random.default_rng(2)
    boxes, box_labels = [], []
    for item in range(count):
        corners = rng.integers(0, side // 2, (item % 3, 2))
        sizes = rng.integers(1, side // 2 + 1, corners.shape)
        boxes.append(np.concatenate([corners, corners + sizes], axis=1).astype(np.float32))
        box_labels.append(rng.integers(1, classes, item % 3).astype(np.int64))
    images = raw_images(count, side)
    return raw_classification(count, classes, labels=None, boxes=boxes, box_labels=box_labels, images=images)


def data_config(raw: RawDataset, folder: Path, image_size: int = 8, **other: Any) -> DataConfig:
    arguments: dict[str, Any] = {
        "name": "pixels",
        "task": raw.task,
        "source": {"_target_": SOURCE},
        "root": folder / "raw",
        "prepared": folder / "prepared" / "pixels",
        "image_size": image_size,
        "in_channels": raw.images.shape[1],
        "num_classes": len(raw.classes),
        "split": SplitConfig(validation=0.25, test=0.2, seed=0),
    }
    return DataConfig(**(arguments | other))


def augmentation(**parts: Any) -> Augmentation:
    nothing = dict.fromkeys(["crop_padding", "horizontal_flip", "cutout", "rotation_degrees", "scale", "brightness"], 0)
    return Augmentation(**(nothing | parts))
