"""Images and masks as picture files of the same names in two folders.

    root/images/<name>.png         root/masks/<name>.png

A mask has one channel of class numbers, or of the grey levels that `mask_values` lists in the order of the classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.sources import RawDataset
from convatlas.data.sources.slices import SliceCollector, require_folder

__all__ = ["load"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm"}
TITLE = "Images with masks"


def load(
    root: Path,
    *,
    classes: Sequence[str] = ("background", "foreground"),
    mask_values: Sequence[int] | None = None,
    channels: int = 1,
    image_size: int = 256,
    patient_pattern: str | None = None,
    licence: str = "not stated",
) -> RawDataset:
    r"""Read all images that have a mask, scaled so that the longer side has `image_size` pixels.

    Args:
        root: see the head of this file.
        classes: names by class number; the first is the background.
        mask_values: the grey level of each class in the masks; null where they are the class numbers.
        channels: 1 reads the images as grey, 3 as colours.
        image_size: side of the images in the data set; what is not square gets black borders.
        patient_pattern: a regular expression whose first group, found in a file's name, is the patient, such as
            `^(patient\d+)`; null takes each image as a patient of its own.
        licence: for the data card.

    Raises:
        UserError: a folder is missing, an option contradicts another, or not one image can be used.
    """
    if channels not in {1, 3}:
        raise UserError(f"data.source.channels={channels} must be 1, for grey images, or 3, for colours.")
    if mask_values is not None and len(set(mask_values)) != len(classes):
        raise UserError(
            f"data.source.mask_values={list(mask_values)} must have another grey level for each of "
            f"{len(classes)} classes."
        )
    for folder in ("images", "masks"):
        require_folder(root / folder, TITLE, "Put images/ and masks/ side by side, or set data.root.")
    collector = SliceCollector(classes, image_size, None, with_spacing=False)
    masks = {path.stem: path for path in _pictures(root / "masks")}
    deep = []
    for path in _pictures(root / "images"):
        patient = _patient(path.stem, patient_pattern)
        if path.stem not in masks:
            collector.leave_out(path.name, "it has no mask")
        elif patient is None:
            collector.leave_out(path.name, f"its name does not fit data.source.patient_pattern={patient_pattern}")
        else:
            deep += _add(collector, path, masks[path.stem], patient, channels=channels, mask_values=mask_values)
    notes = ["Images are scaled to one size; that of their pixels is not known."]
    if deep:
        notes.append(
            f"{len(deep)} images have 16 bits a pixel and are stretched to 8, the 0.5th percentile to black and the "
            f"99.5th to white: {', '.join(deep)}."
        )
    return collector.dataset(title=TITLE, origin="picture files", licence=licence, notes=notes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _patient(stem: str, pattern: str | None) -> str | None:
    if pattern is None:
        return stem
    found = re.search(pattern, stem)
    return found.group(1) if found else None


def _add(
    collector: SliceCollector,
    image_path: Path,
    mask_path: Path,
    patient: str,
    *,
    channels: int,
    mask_values: Sequence[int] | None,
) -> list[str]:
    """Add one image with its mask; returns its name if it has more than 8 bits a pixel."""
    try:
        image, mask = _read(image_path), _read(mask_path, keep_palette=True)
    except (OSError, ValueError, SyntaxError):
        collector.leave_out(image_path.name, "it, or its mask, cannot be read as a picture")
        return []
    if mask.ndim != 2:
        collector.leave_out(image_path.name, f"its mask has {mask.shape[2]} channels, not 1")
        return []
    if mask_values is not None:
        mask, unknown = _numbered(mask, mask_values)
        if unknown is not None:
            collector.leave_out(image_path.name, f"its mask has the grey level {unknown}, which is no class")
            return []
    deep = image.dtype != np.uint8
    before = len(collector.names)
    collector.add(image_path.name, patient, _with_channels(image, channels), mask)
    return [image_path.name] if deep and len(collector.names) > before else []


def _read(path: Path, keep_palette: bool = False) -> NDArray[Any]:
    from PIL import Image

    with Image.open(path) as file:
        picture: Image.Image = file
        if keep_palette and picture.mode == "1":
            picture = picture.convert("L").point(lambda value: value // 255)
        elif not keep_palette and picture.mode not in {"L", "RGB"} and not picture.mode.startswith(("I", "F")):
            picture = picture.convert("RGB")
        return np.asarray(picture)


def _numbered(mask: NDArray[Any], mask_values: Sequence[int]) -> tuple[NDArray[Any], int | None]:
    """Replace grey levels by class numbers; the second value is a level that has none."""
    unknown = np.setdiff1d(np.unique(mask), list(mask_values))
    if len(unknown):
        return mask, int(unknown[0])
    order = np.argsort(mask_values)
    return order[np.searchsorted(np.asarray(mask_values)[order], mask)].astype(np.uint8), None


def _with_channels(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return `(channels, H, W)`; grey is the luma of ITU-R 601, as Pillow has it."""
    if image.ndim == 2:
        return np.repeat(image[None], channels, axis=0)
    colours = image.transpose(2, 0, 1)
    if channels == 3:
        return colours
    gray = np.rint(np.tensordot([0.299, 0.587, 0.114], colours, axes=1))
    return gray[None].astype(image.dtype)
