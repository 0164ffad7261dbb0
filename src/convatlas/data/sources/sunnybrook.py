"""Sunnybrook cardiac MRI: DICOM slices with the outlines of the left ventricle as text files.

Radau et al., "Evaluation Framework for Algorithms Segmenting Short Axis Cardiac MRI" (The MIDAS Journal, 2009).

    root/link.csv                                    patient_id,original_id
    root/dicoms/<patient_id>/<number>.dcm
    root/contourfiles/<original_id>/**/IM-0001-<number>-icontour-manual.txt     the cavity (endocardium)
    root/contourfiles/<original_id>/**/IM-0001-<number>-ocontour-manual.txt     the muscle's outside (epicardium)

A contour file has a point `x y` in each line, in pixels; whole numbers are the middles of pixels, and the first is 1.
Nothing states that: over the slices at hand the contrast between the inside of the inner outline and its surroundings
is best, by the median in each of five patients, with the outlines moved by about one pixel to the left and up.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.sources import RawDataset
from convatlas.data.sources.slices import SliceCollector, require_folder

__all__ = ["load", "outline_mask", "read_contour"]

FIRST_PIXEL = 1.0
CONTOUR = re.compile(r"^IM-\d+-(\d+)-([io])contour-manual\.txt$")
TITLE = "Sunnybrook cardiac MRI"


class UnusableError(Exception):
    """Why a file cannot be used, as the end of a sentence."""


def load(
    root: Path,
    epicardium: bool = False,
    image_size: int = 128,
    pixel_mm: float | None = 1.25,
    test_patients: Sequence[str] = (),
) -> RawDataset:
    """Read all slices that have the outlines asked for.

    Args:
        root: see the head of this file.
        epicardium: take the slices with both outlines, and the classes muscle and cavity; otherwise all slices with an
            inner outline, and the cavity alone. Only at the end of diastole both were drawn.
        image_size: side of the square around the middle of the slice, in pixels after resampling.
        pixel_mm: side of a pixel after resampling; null keeps that of each slice.
        test_patients: patients that make the official test split; without any, `data.split.test` decides.

    Raises:
        UserError: the folder or its table is missing, or not one slice can be used.
    """
    require_folder(root, TITLE, "Put link.csv, dicoms/ and contourfiles/ there, or set data.root.")
    collector = SliceCollector(
        ["background", "muscle", "cavity"] if epicardium else ["background", "cavity"], image_size, pixel_mm
    )
    for patient, original in _patients(root):
        inner, outer = (_contours(root / "contourfiles" / original, kind) for kind in "io")
        for number in sorted(set(inner) & set(outer) if epicardium else set(inner)):
            files = [inner[number], outer[number]] if epicardium else [inner[number]]
            _add(collector, root / "dicoms" / patient / f"{number}.dcm", patient, files)
    return collector.dataset(
        title=TITLE,
        origin="Sunnybrook Health Sciences Centre, 2009",
        licence="CC0 1.0",
        notes=["Grey levels are stretched in each slice; its 0.5th percentile is black, its 99.5th white."],
        test_patients=test_patients,
    )


def _patients(root: Path) -> list[tuple[str, str]]:
    try:
        with (root / "link.csv").open(newline="", encoding="utf-8") as file:
            return sorted((row["patient_id"], row["original_id"]) for row in csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{TITLE}: {root / 'link.csv'} cannot be read: {error.strerror}.") from error
    except KeyError as error:
        raise UserError(f"{TITLE}: {root / 'link.csv'} has no column {error}.") from error


def _contours(folder: Path, kind: str) -> dict[int, Path]:
    """Return a patient's contour files of one kind, "i" or "o", by the number of their slice."""
    found = {path: CONTOUR.match(path.name) for path in sorted(folder.rglob("*contour-manual.txt"))}
    return {int(match[1]): path for path, match in found.items() if match and match[2] == kind}


def _add(collector: SliceCollector, dicom: Path, patient: str, contours: list[Path]) -> None:
    """Add one slice; the contours are the inner one, or the inner and the outer one."""
    name = f"{patient}/{dicom.name}"
    try:
        image, spacing = _read_dicom(dicom)
        mask = np.zeros(image.shape, dtype=np.uint8)
        for number, path in zip((2, 1) if len(contours) == 2 else (1,), contours, strict=True):
            area = outline_mask(read_contour(path), image.shape)
            mask[area & (mask == 0)] = number
    except UnusableError as error:
        collector.leave_out(name, str(error))
        return
    collector.add(name, patient, image, mask, spacing)


def _read_dicom(path: Path) -> tuple[NDArray[Any], Sequence[float] | None]:
    """Return the pixels, and the millimetres from row to row and from column to column, if they are given."""
    import pydicom

    try:
        dicom = pydicom.dcmread(path)
        pixels = dicom.pixel_array
    except FileNotFoundError as error:
        raise UnusableError("there is an outline, but no DICOM file of that number") from error
    except Exception as error:  # pydicom and its decoders raise nearly every kind for a damaged file
        raise UnusableError(f"it cannot be read as DICOM ({type(error).__name__})") from error
    if pixels.ndim != 2:
        raise UnusableError(f"it has the shape {pixels.shape}, not that of one slice")
    spacing = getattr(dicom, "PixelSpacing", None)
    return pixels, None if not spacing else [float(mm) for mm in spacing]


def read_contour(path: Path) -> NDArray[np.float64]:
    """Read the points `(n, 2)`, x and y, counted from 0.

    Raises:
        UnusableError: the file holds something else, or fewer than three points.
    """
    try:
        rows = [[float(number) for number in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UnusableError(f"its outline {path.name} cannot be read") from error
    if len(rows) < 3 or any(len(row) != 2 for row in rows):
        raise UnusableError(f"its outline {path.name} does not have three points x y or more")
    return np.array(rows) - FIRST_PIXEL


def outline_mask(points: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill an outline; `(n, 2)` x and y, counted from 0, give `(H, W)`.

    Raises:
        UnusableError: a point lies outside the image, or no pixel's middle lies inside the outline.
    """
    from skimage.draw import polygon2mask

    height, width = size
    outside = ~((points > -0.5) & (points < [width - 0.5, height - 0.5])).all(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise UnusableError(f"its outline leaves the image of {width} x {height} pixels, at x={x:g}, y={y:g}")
    mask: NDArray[np.bool_] = polygon2mask((height, width), points[:, ::-1])
    if not mask.any():
        raise UnusableError("its outline encloses no pixel")
    return mask
