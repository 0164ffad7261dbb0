"""Volumes in NIfTI with masks in NIfTI, cut into slices: the layouts of ACDC and of the Medical Segmentation Decathlon.

ACDC (Bernard et al. 2018): a folder a patient, each phase of the heart a volume.

    root/**/patient001/patient001_frame01.nii.gz         root/**/patient001/patient001_frame01_gt.nii.gz

Medical Segmentation Decathlon (Antonelli et al. 2022): `dataset.json` lists the volumes and names the labels; each case
is a patient, and several modalities, the fourth axis of a volume, become channels.

    root/dataset.json     {"labels": {"0": "background", ...}, "training": [{"image": ..., "label": ...}, ...]}

Slices lie across the third axis of a volume.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.sources import RawDataset
from convatlas.data.sources.slices import SliceCollector, require_folder

__all__ = ["load_acdc", "load_decathlon"]

ACDC_CLASSES = ["background", "right_ventricle", "muscle", "cavity"]
STRETCHED = "Grey levels are stretched in each slice; its 0.5th percentile is black, its 99.5th white."


def load_acdc(
    root: Path, image_size: int = 256, pixel_mm: float | None = 1.25, test_patients: Sequence[str] = ()
) -> RawDataset:
    """Read the Automated Cardiac Diagnosis Challenge; both phases of a patient are one group.

    Args:
        root: see the head of this file.
        image_size: side of the square around the middle of the slice, in pixels after resampling.
        pixel_mm: side of a pixel after resampling, 1.25 in SAUNet; null keeps that of each volume.
        test_patients: patients that make the official test split; without any, `data.split.test` decides.

    Raises:
        UserError: the folder is missing, or not one slice can be used.
    """
    require_folder(root, "ACDC", "Put the patients' folders there, or set data.root.")
    collector = SliceCollector(ACDC_CLASSES, image_size, pixel_mm)
    for mask in sorted(root.rglob("*_frame*_gt.nii*")):
        _add_volume(collector, mask.with_name(mask.name.replace("_gt.nii", ".nii")), mask, mask.parent.name)
    return collector.dataset(
        title="ACDC",
        origin="Automated Cardiac Diagnosis Challenge, University Hospital of Dijon",
        licence="as the challenge grants it",
        notes=["Both phases of a patient are of one group.", STRETCHED],
        test_patients=test_patients,
    )


def load_decathlon(
    root: Path, image_size: int = 320, pixel_mm: float | None = None, test_patients: Sequence[str] = ()
) -> RawDataset:
    """Read a task of the Medical Segmentation Decathlon; the volumes without masks are not used.

    Args:
        root: folder of the task, with `dataset.json`.
        image_size: side of the square around the middle of the slice, in pixels after resampling.
        pixel_mm: side of a pixel after resampling; null keeps that of each volume.
        test_patients: cases that make the official test split; without any, `data.split.test` decides.

    Raises:
        UserError: the folder or its list is missing or damaged, or not one slice can be used.
    """
    require_folder(root, "Medical Segmentation Decathlon", "Put a task's folder there, or set data.root.")
    path = root / "dataset.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        classes = [listed["labels"][str(number)] for number in range(len(listed["labels"]))]
        pairs = [(root / pair["image"], root / pair["label"]) for pair in listed["training"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the list of a task ({type(error).__name__}: {error}).") from error
    collector = SliceCollector(classes, image_size, pixel_mm)
    for image, mask in pairs:
        _add_volume(collector, image, mask, image.name.partition(".nii")[0])
    return collector.dataset(
        title=str(listed.get("name", "Medical Segmentation Decathlon")),
        origin=str(listed.get("reference") or "Medical Segmentation Decathlon"),
        licence=str(listed.get("licence") or "not stated"),
        notes=[STRETCHED],
        test_patients=test_patients,
    )


def _add_volume(collector: SliceCollector, image: Path, mask: Path, patient: str) -> None:
    """Add all slices of a volume, or none of them where the files do not belong together."""
    name = image.name
    try:
        (pixels, spacing), (labels, _) = _read(image), _read(mask)
    except _UnreadableError as error:
        collector.leave_out(name, str(error))
        return
    if labels.shape != pixels.shape[:3]:
        sizes = [" x ".join(map(str, shape)) for shape in (labels.shape, pixels.shape[:3])]
        collector.leave_out(name, f"its mask has {sizes[0]} voxels, the volume {sizes[1]}")
        return
    planes = pixels[..., None] if pixels.ndim == 3 else pixels
    for number in range(planes.shape[2]):
        # the first axis of NIfTI points along a row, the second down a column
        channels = planes[:, :, number].transpose(2, 1, 0)
        collector.add(f"{name}, slice {number}", patient, channels, labels[:, :, number].T, spacing)


class _UnreadableError(Exception):
    """Why a volume cannot be used."""


def _read(path: Path) -> tuple[NDArray[Any], tuple[float, float]]:
    """Return the voxels, and the millimetres from row to row and from column to column."""
    import nibabel

    try:
        volume: Any = nibabel.load(path)
        voxels = np.asarray(volume.dataobj)
    except FileNotFoundError as error:
        raise _UnreadableError(f"{path.name} is missing") from error
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise _UnreadableError(f"{path.name} is cut short or damaged") from error
    if voxels.ndim not in {3, 4}:
        raise _UnreadableError(f"{path.name} has {voxels.ndim} axes, not 3 or 4")
    along_row, along_column = _written_spacing(volume)
    return voxels, (along_column, along_row)


def _written_spacing(volume: Any) -> tuple[float, float]:
    """Return the first two distances as they stand in the file: on loading, nibabel makes 1 of a missing one."""
    holder = volume.file_map.get("header", volume.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        header = type(volume.header).from_fileobj(file, check=False)
    return float(header["pixdim"][1]), float(header["pixdim"][2])
