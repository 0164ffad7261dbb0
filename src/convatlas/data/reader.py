"""From positions in a split to a batch of tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convatlas.core.errors import UserError
from convatlas.data.augmentation import Changes
from convatlas.data.card import normalisation, remedy
from convatlas.data.prepared import Split
from convatlas.data.raw import IGNORED
from convatlas.data.resident import MappedArrays, PixelArrays
from convatlas.data.shards import ShardedImages
from convatlas.data.squares import centre_square, read_crop, resize, resize_centre, window_in

__all__ = ["Batch", "Indices", "Reader", "resize_masks"]

IGNORE_INDEX = -100
"""Of pixels in batches that nobody marked; torch's losses pass over it."""

Batch: TypeAlias = dict[str, Any]
Indices: TypeAlias = NDArray[np.int64]


class Reader:
    """Makes batches, as `convatlas.data.batches` describes them, from positions in a split.

    Args:
        split: where the images are.
        image_size: side of the images a net gets.
        canny: put the Canny edges behind the images' channels.
        arrays: where the pixels of batches are gathered and changed; None takes the mapped files. Encoded images are
            decoded on the CPU.
        crop: of images without changes, the share of the shorter side that is seen, in the middle.
    """

    def __init__(
        self, split: Split, image_size: int, canny: bool, arrays: PixelArrays | None = None, crop: float = 1.0
    ) -> None:
        self.split = split
        self.crop = crop
        self.image_size = image_size
        self.canny = canny
        self.arrays = arrays or MappedArrays()
        device = self.arrays.device
        mean, std = normalisation(split.card.mean, split.card.std)
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)

    def read(self, indices: Indices, changes: Changes | None = None) -> Batch:
        """Return the batch of these images, augmented where changes are given."""
        side = self.image_size if changes is None else changes.side
        if isinstance(self.split.images, ShardedImages):
            images, changes = self._decoded(self.split.images, indices, changes, side)
            images = resize(images.float().div_(255), side)
        else:
            images = self.arrays.rows(self.split, "images", indices).float().div_(255)
            images = resize_centre(images, side, self.crop if changes is None else 1.0)
        canny = self._canny(indices, side)
        if changes is not None:
            images = changes.images(images, self.mean)
            canny = None if canny is None else changes.moved(canny)
        if self.split.boxes is None:  # detectors normalise themselves
            images = images.sub_(self.mean).div_(self.std)  # in place: large batches would wait for new memory
        if canny is not None:
            images = torch.cat([images, canny], dim=1)
        if changes is not None:
            images = changes.normalised(images)
        return {
            "images": images,
            "indices": torch.from_numpy(indices.copy()),
            **self._annotations(indices, changes, side),
        }

    def sample(self, most: int = 256) -> NDArray[np.uint8]:
        """Return images of the split as `(n, C, H, W)`: all where they are an array, else `most` evenly spaced ones."""
        images = self.split.images
        if not isinstance(images, ShardedImages):
            return images
        chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(np.int64))
        return self._decoded(images, chosen, None, self.image_size)[0].numpy()

    def _decoded(
        self, shards: ShardedImages, indices: Indices, changes: Changes | None, side: int
    ) -> tuple[Tensor, Changes | None]:
        """Decode images to `(B, C, side, side)` uint8, and return the changes that are left to do.

        Random crops are taken here, from the whole image in all its pixels, except those of detection, whose boxes
        move with them, and those that may reach out of the image.
        """
        sizes = shards.sizes[indices].tolist()
        stretches = self.split.card.fitted == "stretch"
        if changes is not None and changes.config.random_area and changes.config.zoom_out == 1 and not stretches:
            crops = [window_in(w, *size) for w, size in zip(changes.window.tolist(), sizes, strict=True)]
            changes = replace(changes, config=changes.config.model_copy(update={"random_area": None}))
        else:
            share = self.crop if changes is None else 1.0
            crops = [
                (0, 0, height, width) if stretches else centre_square(height, width, share) for height, width in sizes
            ]
        channels = self.split.card.image_shape[0]
        try:
            images = [read_crop(shards.read(i), channels, crop, side) for i, crop in zip(indices, crops, strict=True)]
        except RuntimeError as error:
            raise UserError(
                f"{self.split.folder}: an image of the {self.split.name} split cannot be decoded, so the shards have "
                f"been damaged since they were written. {remedy(self.split.card.name)}"
            ) from error
        return torch.stack(images), changes

    def _canny(self, indices: Indices, side: int) -> Tensor | None:
        if not self.canny:
            return None
        assert self.split.canny is not None, "only segmentation has Canny edges, and the configuration is checked"
        return resize(self.arrays.rows(self.split, "canny", indices)[:, None].float(), side)

    def _annotations(self, indices: Indices, changes: Changes | None, side: int) -> Batch:
        split = self.split
        if split.labels is not None:
            return {"labels": torch.from_numpy(split.labels[indices])}
        if split.masks is not None:
            return self._areas(indices, changes, side)
        boxes, labels = self._objects(indices, side)
        if changes is not None:
            boxes, labels = changes.objects(boxes, labels)
        return {"targets": [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]}

    def _areas(self, indices: Indices, changes: Changes | None, side: int) -> Batch:
        """Return the maps of segmentation, moved as the images are, each pixel from the nearest."""
        split = self.split
        assert split.masks is not None
        maps = [resize_masks(self.arrays.rows(split, array, indices), side) for array in ("masks", "edges")]
        masks, edges = maps if changes is None else [changes.masks(each) for each in maps]
        areas: Batch = {
            "masks": masks.long().masked_fill_(masks == IGNORED, IGNORE_INDEX),
            "edges": edges[:, None].float(),
        }
        if split.spacing is not None and changes is None:  # augmented images may be zoomed
            ratio = torch.tensor(split.masks.shape[1:]) / side
            areas["spacing"] = torch.from_numpy(split.spacing[indices]) * ratio
        return areas

    def _objects(self, indices: Indices, side: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each image its boxes, in pixels of the resized images, and their class numbers."""
        split = self.split
        assert split.boxes is not None
        assert split.box_labels is not None
        assert split.box_offsets is not None
        if isinstance(split.images, ShardedImages):
            sizes = split.images.sizes[indices]
        else:
            sizes = np.full((len(indices), 2), split.images.shape[2:], dtype=np.int64)
        ratios = np.tile((side / sizes)[:, ::-1], 2).astype(np.float32)
        spans = [slice(*split.box_offsets[i : i + 2]) for i in indices]
        boxes = [torch.from_numpy(split.boxes[span] * ratio) for span, ratio in zip(spans, ratios, strict=True)]
        return boxes, [torch.from_numpy(split.box_labels[span].copy()) for span in spans]


def resize_masks(masks: Tensor, side: int) -> Tensor:
    """Resample `(B, H, W)` class numbers to `(B, side, side)`, each from the pixel nearest to its centre."""
    if masks.shape[1:] == (side, side):
        return masks
    return F.interpolate(masks[:, None], size=(side, side), mode="nearest-exact")[:, 0]
