"""Slices of medical images on their way into a data set: checked, resampled to one pixel size, and brought to 8 bits.

What is wrong with a slice does not stop the others: it is left out and listed, with its name and the reason, in the
data card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.decoding import stretched
from convatlas.data.raw import IGNORED, RawDataset
from convatlas.data.spool import Spool
from convatlas.data.squares import fit, positions, resampled, sampled, steps, vanishes

__all__ = ["STRETCHED", "SliceCollector", "require_folder"]

STRETCHED = "Grey levels are stretched in each slice; its 0.5th percentile is black, its 99.5th white."


class SliceCollector:
    """Gathers slices of different sizes and pixel sizes, and makes one data set of them.

    Args:
        classes: names by class number; 0 is the background.
        image_size: side of the square that is cut from the middle of each slice, in pixels after resampling.
        pixel_mm: side of a pixel after resampling; None keeps that of each slice.
        ignores: whether masks may have `IGNORED`; elsewhere it is an unknown label as any other.
        with_spacing: whether a slice needs to know the size of its pixels; its grey levels are stretched then. Without
            it, slices are of 8 bits, and are scaled so that their longer side has `image_size` pixels.

    Raises:
        UserError: a size that is not positive.
    """

    def __init__(
        self,
        classes: Sequence[str],
        image_size: int,
        pixel_mm: float | None,
        *,
        ignores: bool = False,
        with_spacing: bool = True,
    ) -> None:
        if image_size < 1:
            raise UserError(f"data.source.image_size={image_size} must be at least 1.")
        if pixel_mm is not None and not pixel_mm > 0:
            raise UserError(f"data.source.pixel_mm={pixel_mm} must be above 0, or null to keep the pixels as they are.")
        self.classes = list(classes)
        self.side = image_size
        self.pixel_mm = pixel_mm
        self.ignores = ignores
        self.with_spacing = with_spacing
        self.left_out: list[tuple[str, str]] = []
        self.names: list[str] = []
        self.converted: Counter[str] = Counter()
        self._images, self._masks = Spool(), Spool()
        self._channels = 0
        self._spacings: list[tuple[float, float]] = []
        self.patients: list[str] = []

    def leave_out(self, name: str, reason: str) -> None:
        """List what cannot be used."""
        self.left_out.append((name, reason))

    def add(
        self,
        name: str,
        patient: str,
        image: NDArray[Any],
        mask: NDArray[Any],
        spacing: Sequence[float] | None = None,
    ) -> None:
        """Check and take one slice, or list why not.

        Args:
            name: for the data card.
            patient: slices of one patient are never divided among splits.
            image: `(H, W)` or `(C, H, W)`, of any type and range.
            mask: `(H, W)` class numbers, `IGNORED` where nobody says what is there.
            spacing: millimetres from one row, and from one column, to the next.
        """
        planes = image[None] if image.ndim == 2 else image
        reason = self._complaint(planes, mask, spacing)
        if reason:
            self.leave_out(name, reason)
            return
        self._channels = self._channels or len(planes)
        if self.with_spacing:
            step = self._step(spacing)
            self._images.append(resampled(np.stack([stretched(plane) for plane in planes]), self.side, step))
            self._masks.append(sampled(mask, self.side, step, order=0).astype(np.uint8))
        else:
            step = (max(mask.shape) / self.side,) * 2
            self._images.append(fit(planes, self.side, "letterbox"))
            self._masks.append(fit(mask.astype(np.uint8)[None], self.side, "letterbox", nearest=True)[0])
        self.names.append(name)
        self.patients.append(patient)
        if spacing is not None:
            self._spacings.append((spacing[0] * step[0], spacing[1] * step[1]))

    def dataset(
        self,
        *,
        title: str,
        origin: str,
        licence: str,
        notes: list[str],
        test_patients: Sequence[str] = (),
        remedy: str = "",
    ) -> RawDataset:
        """Make the data set; patients are numbered in the order of their names.

        Raises:
            UserError: no slice is usable, or a test patient is not there; `remedy` ends the first sentence.
        """
        if not self.names:
            file, reason = self.left_out[0] if self.left_out else ("the folder", "there is nothing in it")
            raise UserError(f"{title}: no slice is usable; {file}: {reason}{remedy and f'; {remedy}'}.")
        patients, numbers = np.unique(self.patients, return_inverse=True)
        unknown = sorted(set(test_patients) - set(patients.tolist()))
        if unknown:
            raise UserError(
                f"data.source.test_patients: there is no {unknown[0]}; the patients are {', '.join(patients.tolist())}."
            )
        in_test = np.isin(self.patients, list(test_patients))
        return RawDataset(
            images=self._images.array(),
            classes=self.classes,
            title=title,
            origin=origin,
            licence=licence,
            made=False,
            masks=self._masks.array(),
            groups=numbers.astype(np.int64),
            official_split=np.where(in_test, "test", "train") if len(test_patients) else None,
            spacing=np.array(self._spacings, dtype=np.float32) if self._spacings else None,
            names=self.names,
            left_out=self.left_out,
            fitted="millimetres" if self.with_spacing else "letterbox",
            percentiles=True,
            converted=self.converted,
            notes=[f"{len(self.names)} slices of {len(patients)} patients; the patient is the group.", *notes],
        )

    def _complaint(self, planes: NDArray[Any], mask: NDArray[Any], spacing: Sequence[float] | None) -> str | None:
        known = len(self.classes)
        values = set(np.unique(mask).tolist())
        unknown = sorted(values - {*range(known), *([IGNORED] if self.ignores else [])})
        if mask.shape != planes.shape[1:]:
            sizes = [" x ".join(map(str, shape)) for shape in (mask.shape, planes.shape[1:])]
            reason = f"the mask has {sizes[0]} pixels, the image {sizes[1]}"
        elif self._channels and len(planes) != self._channels:
            reason = f"it has {len(planes)} channels, and those before it have {self._channels}"
        elif not np.isfinite(planes).all():
            reason = "the image has values that are no numbers"
        elif self.ignores and values == {IGNORED}:
            reason = "every pixel of its mask is ignored"
        elif unknown:
            reason = f"the mask has the unknown label {unknown[0]:g}; known are 0 to {known - 1}"
        elif not self.with_spacing:
            return None
        elif spacing is None or not all(np.isfinite(mm) and mm > 0 for mm in spacing):
            reason = "the size of a pixel is not given"
        elif vanishes(mask.shape, self._step(spacing)):
            reason = f"its pixels of {spacing[1]:g} x {spacing[0]:g} mm leave nothing of it"
        elif not reaches_in(mask, self.side, self._step(spacing)):
            reason = f"the mask reaches out of the {self.side} x {self.side} pixels that are kept"
        else:
            return None
        return reason

    def _step(self, spacing: Sequence[float] | None) -> tuple[float, float]:
        return steps(self.pixel_mm, spacing)


def reaches_in(mask: NDArray[Any], side: int, step: tuple[float, float]) -> bool:
    """Say whether all of a mask's foreground lies in the square that `sampled` takes."""
    for axis in (0, 1):
        marked = np.flatnonzero(mask.any(axis=1 - axis))
        inside = positions(mask.shape[axis], side, step[axis])
        reach = step[axis] / 2
        if len(marked) and (marked[0] < inside[0] - reach or marked[-1] > inside[-1] + reach):
            return False
    return True


def require_folder(root: Path, title: str, remedy: str) -> None:
    """Raise UserError unless the raw files' folder is there."""
    if not root.is_dir():
        raise UserError(f"{title}: there is no folder {root}. {remedy}")
