"""Images and masks as picture files of the same names in two folders, also in folders of the same names within them.

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
from convatlas.data.archives import file_bytes, printable
from convatlas.data.decoding import BadImageError, decode, decode_labels
from convatlas.data.image_files import named_pattern, pictures_below
from convatlas.data.raw import RawDataset
from convatlas.data.sources.slices import SliceCollector, require_folder

__all__ = ["load"]

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
    patients = named_pattern("patient_pattern", patient_pattern)
    for folder in ("images", "masks"):
        require_folder(root / folder, TITLE, "Put images/ and masks/ side by side, or set data.root.")
    collector = SliceCollector(classes, image_size, None, with_spacing=False)
    images, masks = _by_name(root / "images", collector), _by_name(root / "masks", collector)
    for name in sorted(set(masks) - set(images)):
        collector.leave_out(f"masks/{name}", "there is a mask, but no image")
    deep = []
    for name, paths in sorted(images.items(), key=lambda item: item[1][0]):
        shown = printable(paths[0].relative_to(root / "images"))
        patient = _patient(paths[0].stem, patients)
        if name not in masks:
            collector.leave_out(shown, "it has no mask")
        elif patient is None:
            collector.leave_out(shown, f"its name does not fit data.source.patient_pattern={patient_pattern}")
        elif len(paths) > 1 or len(masks[name]) > 1:
            which, several = ("images", paths) if len(paths) > 1 else ("masks", masks[name])
            names = " and ".join(printable(path.name) for path in several)
            collector.leave_out(shown, f"there are {len(several)} {which} of its name, {names}")
        else:
            try:
                found = decode(file_bytes(paths[0]), channels, percentiles=True)
                mask = _read_mask(masks[name][0], mask_values)
            except (BadImageError, OSError) as error:
                collector.leave_out(shown, str(error))
                continue
            before = len(collector.names)
            collector.add(shown, patient, found.pixels, mask)
            if len(collector.names) > before:
                collector.converted.update(found.changed)
                deep += [shown] if any("bits" in change for change in found.changed) else []
    notes = ["Images are scaled to one size; that of their pixels is not known."]
    if deep:
        notes.append(
            f"{len(deep)} images have 16 bits a pixel and are stretched to 8, the 0.5th percentile to black and the "
            f"99.5th to white: {', '.join(deep)}."
        )
    values = "data.source.mask_values, for example [0, 255], names the grey level of each class"
    remedy = values if mask_values is None and any("unknown label" in why for _, why in collector.left_out) else ""
    return collector.dataset(title=TITLE, origin="picture files", licence=licence, notes=notes, remedy=remedy)


def _by_name(folder: Path, collector: SliceCollector) -> dict[str, list[Path]]:
    """Return the images of a folder by their paths within it, without suffix; other files are listed."""
    pictures, others = pictures_below(folder)
    for path in others:
        collector.leave_out(printable(path.relative_to(folder.parent)), "its name does not end as that of an image")
    found: dict[str, list[Path]] = {}
    for path in pictures:
        found.setdefault(printable(path.relative_to(folder).with_suffix("")), []).append(path)
    return found


def _patient(stem: str, pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return stem
    found = pattern.search(stem)
    return found.group(1) if found else None


def _read_mask(path: Path, mask_values: Sequence[int] | None) -> NDArray[Any]:
    """Return class numbers `(H, W)`.

    Raises:
        BadImageError: the mask cannot be used; the text is about its image.
    """
    try:
        mask = decode_labels(file_bytes(path))
    except BadImageError as error:
        text = str(error)
        raise BadImageError(f"its mask {text[3:]}" if text.startswith("it ") else f"of its mask {text}") from error
    except OSError as error:
        raise BadImageError(f"its mask cannot be read: {error.strerror or error}") from error
    if mask_values is None:
        return mask
    mask, unknown = _numbered(mask, mask_values)
    if unknown is not None:
        raise BadImageError(f"its mask has the grey level {unknown}, which is no class")
    return mask


def _numbered(mask: NDArray[Any], mask_values: Sequence[int]) -> tuple[NDArray[Any], int | None]:
    """Replace grey levels by class numbers; the second value is a level that has none."""
    unknown = np.setdiff1d(np.unique(mask), list(mask_values))
    if len(unknown):
        return mask, int(unknown[0])
    order = np.argsort(mask_values)
    return order[np.searchsorted(np.asarray(mask_values)[order], mask)].astype(np.uint8), None
