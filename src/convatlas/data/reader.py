"""From positions in a split to a batch of tensors."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.augmentation import Changes
from convatlas.data.prepared import Split

__all__ = ["Batch", "Indices", "Reader", "resize", "resize_masks"]

Batch: TypeAlias = dict[str, Any]
Indices: TypeAlias = NDArray[np.int64]


class Reader:
    """Makes batches, as `convatlas.data.batches` describes them, from positions in a split.

    Args:
        split: where the images are.
        image_size: side of the images a net gets.
        canny: put the Canny edges behind the images' channels.
    """

    def __init__(self, split: Split, image_size: int, canny: bool) -> None:
        self.split = split
        self.image_size = image_size
        self.canny = canny
        self.mean = torch.tensor(split.card.mean).view(-1, 1, 1)
        # A channel of one colour has no spread; it becomes zero.
        self.std = torch.tensor([deviation or 1.0 for deviation in split.card.std]).view(-1, 1, 1)

    def read(self, indices: Indices, changes: Changes | None = None) -> Batch:
        """Return the batch of these images, augmented where changes are given."""
        images = resize(torch.from_numpy(self.split.images[indices]).float().div_(255), self.image_size)
        canny = self._canny(indices)
        if changes is not None:
            images = changes.images(images)
            canny = None if canny is None else changes.moved(canny)
        if self.split.card.task != "detection":
            images = (images - self.mean) / self.std
        if canny is not None:
            images = torch.cat([images, canny], dim=1)
        if changes is not None:
            images = changes.normalised(images)
        return {"images": images, "indices": torch.from_numpy(indices.copy()), **self._annotations(indices, changes)}

    def _canny(self, indices: Indices) -> Tensor | None:
        if not self.canny:
            return None
        assert self.split.canny is not None, "only segmentation has Canny edges, and the configuration is checked"
        return resize(torch.from_numpy(self.split.canny[indices])[:, None].float(), self.image_size)

    def _annotations(self, indices: Indices, changes: Changes | None) -> Batch:
        split = self.split
        if split.labels is not None:
            return {"labels": torch.from_numpy(split.labels[indices])}
        if split.masks is not None:
            return self._areas(indices, changes)
        boxes, labels = self._objects(indices)
        if changes is not None:
            boxes = changes.boxes(boxes, self.image_size)
        return {"targets": [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]}

    def _areas(self, indices: Indices, changes: Changes | None) -> Batch:
        """Return the maps of segmentation, moved as the images are, each pixel from the nearest."""
        split = self.split
        assert split.masks is not None
        assert split.edges is not None
        maps = [resize_masks(torch.from_numpy(array[indices]), self.image_size) for array in (split.masks, split.edges)]
        masks, edges = maps if changes is None else [changes.masks(each) for each in maps]
        areas: Batch = {"masks": masks.long(), "edges": edges[:, None].float()}
        if split.spacing is not None and changes is None:  # augmented images may be zoomed
            ratio = torch.tensor(split.card.image_shape[1:]) / self.image_size
            areas["spacing"] = torch.from_numpy(split.spacing[indices]) * ratio
        return areas

    def _objects(self, indices: Indices) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each image its boxes, in pixels of the images a net gets, and their class numbers."""
        split = self.split
        assert split.boxes is not None
        assert split.box_labels is not None
        assert split.box_offsets is not None
        height, width = split.card.image_shape[1:]
        ratio = np.array([self.image_size / width, self.image_size / height] * 2, dtype=np.float32)
        spans = [slice(*split.box_offsets[i : i + 2]) for i in indices]
        boxes = [torch.from_numpy(split.boxes[span] * ratio) for span in spans]
        return boxes, [torch.from_numpy(split.box_labels[span].copy()) for span in spans]


def resize(images: Tensor, side: int) -> Tensor:
    """Resample `(B, C, H, W)` float images to `(B, C, side, side)`, smoothed beforehand where they shrink."""
    height, width = images.shape[2:]
    if (height, width) == (side, side):
        return images
    shrinks = side < max(height, width)
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinks)


def resize_masks(masks: Tensor, side: int) -> Tensor:
    """Resample `(B, H, W)` class numbers to `(B, side, side)`, each from the pixel nearest to its centre."""
    if masks.shape[1:] == (side, side):
        return masks
    return F.interpolate(masks[:, None], size=(side, side), mode="nearest-exact")[:, 0]
