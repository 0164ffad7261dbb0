"""A data set as its source has it, before any split or scaling."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from convatlas.data.image_files import ImageFiles
from convatlas.data.spool import Rows
from convatlas.data.squares import Fit

__all__ = ["IGNORED", "RawDataset"]

IGNORED = 255
"""In masks: pixels that nobody marked, which are neither trained on nor tested."""

Task: TypeAlias = Literal["classification", "detection", "segmentation"]
TASKS: dict[str, Task] = {"labels": "classification", "boxes": "detection", "masks": "segmentation"}
"""What annotations are for, by the array that holds them."""


@dataclass
class RawDataset:
    """A data set as its source has it.

    Attributes:
        images: `(N, C, H, W)` uint8, in memory or mapped from a file; or files of any sizes, whose boxes are
            in pixels of the image as it is seen, that is, after a rotation that the file's EXIF data ask for.
        classes: names by class number. In detection and segmentation number 0 is the background.
        labels: classification: `(N,)` int64 class numbers.
        boxes: detection: for each image `(objects, 4)` float32, `x1, y1, x2, y2` in pixels.
        box_labels: detection: for each image `(objects,)` int64 class numbers from 1.
        masks: segmentation: `(N, H, W)` uint8 class numbers, `IGNORED` where nobody says what is there.
        groups: `(N,)` int64; items of one group (a patient, a writer) must not be split.
        spacing: `(N, 2)` float32, millimetres from one row, and from one column, to the next, where they are known.
        names: of the items in their files, where they have any; the data card names what it rejects by them.
        left_out: `(name, reason)` of what the source could not make an item of.
        official_split: `(N,)` of "train" or "test" where the source has an official test split.
        made: True where the images are made by a program and were never seen by a camera or a scanner.
        title, origin, licence: for the data card: what it is, who made it, on which terms.
        fitted: how the source made squares of images of many sizes; None where they came in one size or as files.
        percentiles: whether images of 16 bits were stretched between percentiles.
        converted: for the data card: how many images are not as they were, by what was done.
        notes: for the data card: what a reader of the results has to know about the data.
    """

    images: NDArray[np.uint8] | ImageFiles
    classes: list[str]
    title: str
    origin: str
    licence: str
    made: bool
    labels: NDArray[np.int64] | None = None
    boxes: list[NDArray[np.float32]] | None = None
    box_labels: list[NDArray[np.int64]] | None = None
    masks: NDArray[np.uint8] | None = None
    groups: NDArray[np.int64] | None = None
    official_split: NDArray[np.str_] | None = None
    spacing: NDArray[np.float32] | None = None
    names: list[str] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    fitted: Fit | None = None
    percentiles: bool = False
    converted: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """`images`, where they are an array."""
        assert not isinstance(self.images, ImageFiles), "images in files have no array"
        return self.images

    @property
    def task(self) -> Task:
        """What the annotations are for.

        Raises:
            ValueError: there are none, or those of more than one task.
        """
        found = [task for array, task in TASKS.items() if getattr(self, array) is not None]
        if len(found) != 1 or (self.boxes is None) != (self.box_labels is None):
            raise ValueError("give exactly one of labels, boxes with box_labels, or masks.")
        return found[0]

    def take(self, items: NDArray[np.int64]) -> RawDataset:
        """Return the data set of these items alone, in this order; `items`: `(n,)` positions.

        Pixels are not copied, see `convatlas.data.spool.Rows`.
        """
        return replace(
            self,
            images=self.images.take(items) if isinstance(self.images, ImageFiles) else _rows(self.images, items),
            labels=None if self.labels is None else self.labels[items],
            boxes=None if self.boxes is None else [self.boxes[i] for i in items],
            box_labels=None if self.box_labels is None else [self.box_labels[i] for i in items],
            masks=None if self.masks is None else _rows(self.masks, items),
            groups=None if self.groups is None else self.groups[items],
            official_split=None if self.official_split is None else self.official_split[items],
            spacing=None if self.spacing is None else self.spacing[items],
            names=None if self.names is None else [self.names[i] for i in items],
        )


def _rows(pixels: NDArray[np.uint8], items: NDArray[np.int64]) -> NDArray[np.uint8]:
    return cast("NDArray[np.uint8]", Rows(pixels, items))  # it behaves as an array to those who take parts of it
