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
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import read_text
from convatlas.data.decoding import BadImageError
from convatlas.data.image_files import folders_in
from convatlas.data.medical import read_dicom
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import leaves_folder
from convatlas.data.sources.slices import STRETCHED, SliceCollector, require_folder

__all__ = ["load", "outline_mask", "read_contour"]

FIRST_PIXEL = 1.0
CONTOUR = re.compile(r"^IM-\d+-(\d+)-([io])contour-manual\.txt$")
TITLE = "Sunnybrook cardiac MRI"


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
    patients = _patients(root, collector)
    for patient, original in patients:
        inner, outer = (_contours(root / "contourfiles" / original, kind, collector) for kind in "io")
        numbers = sorted(set(inner) & set(outer) if epicardium else set(inner))
        if not numbers:
            collector.leave_out(patient, f"contourfiles/{original} has no outlines of it")
        for number in numbers:
            files = [*inner[number], *outer[number]] if epicardium else inner[number]
            _add(collector, root / "dicoms" / patient / f"{number}.dcm", patient, files, 2 if epicardium else 1)
    return collector.dataset(
        title=TITLE,
        origin="Sunnybrook Health Sciences Centre, 2009",
        licence="CC0 1.0",
        notes=[STRETCHED, *_unused(root, patients)],
        test_patients=test_patients,
    )


def _patients(root: Path, collector: SliceCollector) -> list[tuple[str, str]]:
    """Return the patients of the table and their names among the contours; rows without both are listed."""
    path = root / "link.csv"
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = ("patient_id", "original_id")
    for column in columns:
        if column not in (table.fieldnames or ()):
            raise UserError(f"{TITLE}: {path} has no column {column!r}; correct its first line.")
    pairs = []
    for row in table:
        patient, original = ((row[column] or "").strip() for column in columns)
        if leaves_folder(patient) or leaves_folder(original):
            collector.leave_out(f"link.csv, line {table.line_num}", "it has no patient_id or no original_id")
        else:
            pairs.append((patient, original))
    return sorted(pairs)


def _unused(root: Path, patients: list[tuple[str, str]]) -> list[str]:
    """Name the folders of patients that are not in the table."""
    unused = []
    for folder, known in zip(("dicoms", "contourfiles"), zip(*patients, strict=True), strict=False):
        names = [path.name for path in folders_in(root / folder) if path.name not in known]
        unused += [f"Not used, as link.csv does not name them: {folder}/{', '.join(names)}."] if names else []
    return unused


def _contours(folder: Path, kind: str, collector: SliceCollector) -> dict[int, list[Path]]:
    """Return a patient's contour files of one kind, "i" or "o", by the number of their slice; others are listed."""
    found = {path: CONTOUR.match(path.name) for path in sorted(folder.rglob("*contour-manual.txt"))}
    by_slice: dict[int, list[Path]] = {}
    for path, match in found.items():
        if match is None and f"{kind}contour" in path.name:
            collector.leave_out(f"{folder.name}/{path.name}", "its name tells no slice")
        if match and match[2] == kind:
            by_slice.setdefault(int(match[1]), []).append(path)
    return by_slice


def _add(collector: SliceCollector, dicom: Path, patient: str, contours: list[Path], wanted: int) -> None:
    """Add one slice; the contours are the inner one, or the inner and the outer one."""
    name = f"{patient}/{dicom.name}"
    try:
        if len(contours) > wanted:
            raise BadImageError(f"there are two outlines of one kind among {', '.join(c.name for c in contours)}")
        try:
            image, spacing = read_dicom(dicom)
        except FileNotFoundError as error:
            raise BadImageError("there is an outline, but no DICOM file of that number") from error
        mask = np.zeros(image.shape, dtype=np.uint8)
        for number, path in zip((2, 1) if len(contours) == 2 else (1,), contours, strict=True):
            area = outline_mask(read_contour(path), image.shape)
            mask[area & (mask == 0)] = number
    except BadImageError as error:
        collector.leave_out(name, str(error))
        return
    collector.add(name, patient, image, mask, spacing)


def read_contour(path: Path) -> NDArray[np.float64]:
    """Read the points `(n, 2)`, x and y, counted from 0.

    Raises:
        BadImageError: the file holds something else, or fewer than three points.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = [[float(number) for number in line.split()] for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise BadImageError(f"its outline {path.name} cannot be read") from error
    if len(rows) < 3 or any(len(row) != 2 for row in rows):
        raise BadImageError(f"its outline {path.name} does not have three points x y or more")
    return np.array(rows) - FIRST_PIXEL


def outline_mask(points: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill an outline; `(n, 2)` x and y, counted from 0, give `(H, W)`.

    Raises:
        BadImageError: a point lies outside the image, or no pixel's middle lies inside the outline.
    """
    from skimage.draw import polygon2mask

    height, width = size
    outside = ~((points > -0.5) & (points < [width - 0.5, height - 0.5])).all(axis=1)
    if outside.any():
        x, y = points[outside][0]
        raise BadImageError(f"its outline leaves the image of {width} x {height} pixels, at x={x:g}, y={y:g}")
    mask: NDArray[np.bool_] = polygon2mask((height, width), points[:, ::-1])
    if not mask.any():
        raise BadImageError("its outline encloses no pixel")
    return mask
