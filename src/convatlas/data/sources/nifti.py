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
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import read_text
from convatlas.data.decoding import BadImageError
from convatlas.data.image_files import split_of_folder
from convatlas.data.medical import read_volume, slices_of
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import leaves_folder
from convatlas.data.sources.slices import STRETCHED, SliceCollector, require_folder

__all__ = ["load_acdc", "load_decathlon"]

ACDC_CLASSES = ["background", "right_ventricle", "muscle", "cavity"]


def load_acdc(
    root: Path, image_size: int = 256, pixel_mm: float | None = 1.25, test_patients: Sequence[str] = ()
) -> RawDataset:
    """Read the Automated Cardiac Diagnosis Challenge; both phases of a patient are one group.

    Args:
        root: see the head of this file.
        image_size: side of the square around the middle of the slice, in pixels after resampling.
        pixel_mm: side of a pixel after resampling, 1.25 in SAUNet; null keeps that of each volume.
        test_patients: patients that make the official test split; without any, those below a folder named for the test,
            such as `testing/`, and without that `data.split.test` decides.

    Raises:
        UserError: the folder is missing, or not one slice can be used.
    """
    require_folder(root, "ACDC", "Put the patients' folders there, or set data.root.")
    collector = SliceCollector(ACDC_CLASSES, image_size, pixel_mm)
    axes: Counter[str] = Counter()
    in_test = set()
    volumes = {path for path in sorted(root.rglob("*_frame*.nii*")) if not path.name.startswith(".")}
    masks = {path for path in volumes if "_gt.nii" in path.name}
    for mask in sorted(masks):
        image = mask.with_name(mask.name.replace("_gt.nii", ".nii"))
        axes[_add_volume(collector, image, mask, mask.parent.name)] += 1
        volumes.discard(image)
        if any(split_of_folder(part) == "test" for part in mask.relative_to(root).parts[:-2]):
            in_test.add(mask.parent.name)
    for image in sorted(volumes - masks):
        collector.leave_out(image.name, "it has no mask")
    used = {name for name in collector.patients if name in in_test}
    if used and not test_patients:
        test_patients = sorted(used) if used != set(collector.patients) else ()
    return collector.dataset(
        title="ACDC",
        origin="Automated Cardiac Diagnosis Challenge, University Hospital of Dijon",
        licence="as the challenge grants it",
        notes=["Both phases of a patient are of one group.", STRETCHED, *_mixed_axes(axes)],
        test_patients=test_patients,
    )


def load_decathlon(
    root: Path, image_size: int = 320, pixel_mm: float | None = None, test_patients: Sequence[str] = ()
) -> RawDataset:
    """Read a task of the Medical Segmentation Decathlon; the volumes without masks are listed and not used.

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
        listed = json.loads(read_text(path))
        classes = [listed["labels"][str(number)] for number in range(len(listed["labels"]))]
        pairs = [(_inside(root, pair["image"]), _inside(root, pair["label"])) for pair in listed["training"]]
        others = [str(other["image"] if isinstance(other, dict) else other) for other in listed.get("test", ())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as the list of a task ({type(error).__name__}: {error}).") from error
    collector = SliceCollector(classes, image_size, pixel_mm)
    axes: Counter[str] = Counter()
    for image, mask in pairs:
        axes[_add_volume(collector, image, mask, image.name.partition(".nii")[0])] += 1
    for other in others:
        collector.leave_out(PurePosixPath(other).name, "it has no mask")
    return collector.dataset(
        title=str(listed.get("name", "Medical Segmentation Decathlon")),
        origin=str(listed.get("reference") or "Medical Segmentation Decathlon"),
        licence=str(listed.get("licence") or "not stated"),
        notes=[STRETCHED, *_mixed_axes(axes)],
        test_patients=test_patients,
    )


def _inside(root: Path, name: str) -> Path:
    if leaves_folder(name):
        raise ValueError(f"{name} leads out of the folder")
    return root / name


def _mixed_axes(axes: Counter[str]) -> list[str]:
    kinds = [f"{count} from {kind}" for kind, count in sorted(axes.items()) if kind]
    note = f"The slices of the volumes lie along different axes of the body: {', '.join(kinds)}."
    return [note] if len(kinds) > 1 else []


def _add_volume(collector: SliceCollector, image: Path, mask: Path, patient: str) -> str:
    """Add all slices of a volume, or none of them where the files do not belong together; return its third axis."""
    try:
        (volume, pixels), (drawn, labels) = read_volume(image), read_volume(mask)
        slices = slices_of(volume, pixels)
        if all(mm > 0 for mm in slices[0][1]):  # otherwise each slice is left out
            labels = _as_the_image_lies(volume, drawn, labels)
        if labels.shape != pixels.shape[:3]:
            sizes = [" x ".join(map(str, shape)) for shape in (labels.shape, pixels.shape[:3])]
            raise BadImageError(f"its mask has {sizes[0]} voxels, the volume {sizes[1]}")
    except BadImageError as error:
        collector.leave_out(image.name, str(error))
        return ""
    for number, (channels, spacing) in enumerate(slices):
        collector.add(f"{image.name}, slice {number}", patient, channels, labels[:, :, number].T, spacing)
    import nibabel

    ends = {"L": "right", "R": "left", "P": "front", "A": "back", "I": "top", "S": "bottom"}
    third = nibabel.aff2axcodes(volume.affine)[2]
    return f"{ends[third]} on" if third in ends else ""


def _as_the_image_lies(volume: Any, drawn: Any, labels: NDArray[Any]) -> NDArray[Any]:
    """Turn and flip the voxels of a mask to the axes of its volume.

    Raises:
        BadImageError: it lies elsewhere in space, or has other voxels.
    """
    import nibabel
    from nibabel import orientations

    if not _is_placed(volume) or not _is_placed(drawn) or labels.ndim != 3:
        return labels
    there, wanted = (orientations.io_orientation(each.affine) for each in (drawn, volume))
    if np.isnan(there).any() or np.isnan(wanted).any():
        raise BadImageError("its affine, or that of its mask, has no axes")
    turn = orientations.ornt_transform(there, wanted)
    affine = drawn.affine @ orientations.inv_ornt_aff(turn, labels.shape)
    ends = np.array(list(product((0, 1), repeat=3))) * (np.array(volume.shape[:3]) - 1)
    apart = nibabel.affines.apply_affine(affine, ends) - nibabel.affines.apply_affine(volume.affine, ends)
    if np.abs(apart).max() > 0.5 * nibabel.affines.voxel_sizes(volume.affine).min():
        raise BadImageError("its mask lies elsewhere in space: their affines differ")
    turned: NDArray[Any] = orientations.apply_orientation(labels, turn)
    return turned


def _is_placed(volume: Any) -> bool:
    """Say whether a file tells where its voxels lie; otherwise nibabel makes a place up."""
    header = volume.header
    return "sform_code" not in header or bool(header["sform_code"] or header["qform_code"])
