"""Hausdorff distances between the outlines of classes, in pixels or millimetres."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

__all__ = ["DistanceMeans", "hausdorff_distances", "outlines"]


def hausdorff_distances(predictions: Tensor, masks: Tensor, classes: int, spacing: Tensor | None = None) -> Tensor:
    """Return the largest distance from any point of one outline to the nearest point of the other, by image and class.

    Args:
        predictions: `(B, H, W)` class numbers.
        masks: `(B, H, W)` class numbers.
        classes: how many there are; 0 is the background.
        spacing: `(B, 2)`, from one row, and from one column, to the next; without it distances are in pixels.

    Returns:
        `(B, classes - 1)` float64, of the foreground: NaN where neither map has the class; where only one has it, the
        image's diagonal, so that what is overlooked counts as badly as anything can.
    """
    from scipy.spatial.distance import directed_hausdorff

    found, true = (outlines(maps, classes).cpu().numpy() for maps in (predictions, masks))
    units = np.ones((len(masks), 2)) if spacing is None else spacing.double().cpu().numpy()
    distances = np.full(found.shape[:2], np.nan)
    for image, number in np.ndindex(*distances.shape):
        points = [_points(maps[image, number], units[image]) for maps in (found, true)]
        if all(map(len, points)):
            one, other = points
            distances[image, number] = max(directed_hausdorff(one, other)[0], directed_hausdorff(other, one)[0])
        elif any(map(len, points)):
            distances[image, number] = np.hypot(*(units[image] * masks.shape[1:]))
    return torch.from_numpy(distances)


def outlines(masks: Tensor, classes: int) -> Tensor:
    """Mark the pixels of each foreground class that have a neighbour, of four, outside it or outside the image.

    Args:
        masks: `(B, H, W)` class numbers.
        classes: how many there are.

    Returns:
        `(B, classes - 1, H, W)` bool.
    """
    areas = masks[:, None] == torch.arange(1, classes, device=masks.device).view(1, -1, 1, 1)
    padded = F.pad(areas, (1, 1, 1, 1))
    surrounded = padded[:, :, 2:, 1:-1] & padded[:, :, :-2, 1:-1] & padded[:, :, 1:-1, 2:] & padded[:, :, 1:-1, :-2]
    return areas & ~surrounded


def _points(outline: NDArray[np.bool_], unit: NDArray[np.float64]) -> NDArray[np.float64]:
    points: NDArray[np.float64] = np.argwhere(outline) * unit
    return points


class DistanceMeans(Metric):
    """Means of distances by class, over the images of a split and over processes.

    Args:
        classes: how many there are, the background counted.
    """

    full_state_update = False
    total: Tensor
    found: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(classes - 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("found", torch.zeros(classes - 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.unit = "px"

    def update(self, distances: Tensor, unit: str) -> None:
        """Add the distances `(B, classes - 1)` of some images, in "px" or "mm"."""
        self.total += distances.nansum(0).to(self.total)
        self.found += (~distances.isnan()).sum(0).to(self.found)
        self.unit = unit

    def compute(self) -> Tensor:
        """Return the mean by class, `(classes - 1,)`, NaN where there is none."""
        return self.total / self.found
