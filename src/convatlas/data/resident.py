"""Where a split's pixels lie while batches are made of them: in the mapped files, or in the memory of a device.

A GPU that has a small data set in its own memory gathers and augments batches there, and only the numbers that were
drawn for them travel. What is drawn does not depend on it.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convatlas.data.prepared import PreparedData, Split

__all__ = ["MOST_BYTES", "MappedArrays", "PixelArrays", "Resident", "ResidentArrays", "arrays_for", "pixel_bytes"]

Resident: TypeAlias = Literal["auto", True, False]

PIXELS = ("images", "masks", "canny", "edges")
MOST_BYTES = 2 * 2**30
"""`trainer.resident=auto` takes data sets up to this size: a quarter of a GPU of 8 GB, ten times CIFAR-10."""


class PixelArrays(Protocol):
    """Rows of the arrays of a split that hold pixels."""

    device: torch.device
    """Where the rows lie that are returned, and the pixels of the batches that are made of them."""

    def rows(self, split: Split, array: str, indices: NDArray[np.int64]) -> Tensor:
        """Return `array[indices]` of "images", "masks", "canny" or "edges", uint8."""


class MappedArrays:
    """Gathers from the memory-mapped files."""

    device = torch.device("cpu")

    def rows(self, split: Split, array: str, indices: NDArray[np.int64]) -> Tensor:
        """Return `array[indices]`."""
        return torch.from_numpy(getattr(split, array)[indices])


class ResidentArrays:
    """Gathers from copies in a device's memory; an array is copied when its first rows are asked for.

    Args:
        device: whose memory; the CPU's works the same way.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, str], Tensor] = {}

    def rows(self, split: Split, array: str, indices: NDArray[np.int64]) -> Tensor:
        """Return `array[indices]`."""
        key = split.name, array
        if key not in self._held:
            self._held[key] = copied_to(getattr(split, array), self.device)
        return self._held[key][torch.from_numpy(indices).to(self.device)]


def copied_to(array: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return a copy of an array in the memory of a device."""
    return torch.from_numpy(np.array(array)).to(device)


def arrays_for(prepared: PreparedData, device: torch.device, resident: Resident) -> PixelArrays:
    """Return where batches for a net on this device are made.

    Args:
        prepared: the data set.
        device: the net's.
        resident: `trainer.resident`; "auto" keeps arrays of at most `MOST_BYTES` in the memory of a GPU.
    """
    if resident == "auto":
        resident = device.type != "cpu" and prepared.card.storage == "arrays" and pixel_bytes(prepared) <= MOST_BYTES
    return ResidentArrays(device) if resident else MappedArrays()


def pixel_bytes(prepared: PreparedData) -> int:
    """Return the size of a data set's pixel arrays over all splits."""
    arrays = [getattr(split, name) for split in prepared.splits.values() for name in PIXELS]
    return sum(array.nbytes for array in arrays if array is not None)
