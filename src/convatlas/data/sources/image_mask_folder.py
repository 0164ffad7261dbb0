"""Images and masks as picture files of the same names in two folders, also in folders of the same names within them.

    root/images/<name>.png         root/masks/<name>.png

A mask has one channel of class numbers, or of the grey levels that `mask_values` lists in the order of the classes, or
the colours that `mask_colours` lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import file_bytes, printable
from convatlas.data.decoding import BadImageError, decode, decode_colours, decode_labels
from convatlas.data.image_files import named_pattern, pictures_below
from convatlas.data.raw import IGNORED, RawDataset
from convatlas.data.sources.slices import SliceCollector, require_folder

__all__ = ["load"]

TITLE = "Images with masks"


def load(
    root: Path,
    *,
    classes: Sequence[str] = ("background", "foreground"),
    mask_values: Sequence[int] | None = None,
    mask_colours: Sequence[Sequence[int]] | None = None,
    ignore: int | Sequence[int] | None = None,
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
        mask_colours: red, green and blue of each class in the masks, from 0 to 255; null where they have one channel.
        ignore: the grey level, or the colour, of pixels that are neither trained on nor tested.
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
    legend = _legend(len(classes), mask_values, mask_colours, ignore)
    patients = named_pattern("patient_pattern", patient_pattern)
    for folder in ("images", "masks"):
        require_folder(root / folder, TITLE, "Put images/ and masks/ side by side, or set data.root.")
    collector = SliceCollector(classes, image_size, None, ignores=ignore is not None, with_spacing=False)
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
                mask = _read_mask(masks[name][0], legend)
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
    remedies = {
        "unknown label": "data.source.mask_values, for example [0, 255], names the grey level of each class",
        "channels that differ": "data.source.mask_colours, for example [[0,0,0],[255,0,0]], names those of classes",
    }
    reasons = " ".join(why for _, why in collector.left_out)
    remedy = next((remedy for reason, remedy in remedies.items() if reason in reasons), "")
    if not collector.left_out:
        remedy = f"put pictures into {root / 'images'} and masks of the same names into {root / 'masks'}"
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


Legend: TypeAlias = dict[int, int]
"""Class numbers by the grey levels of masks, or by their colours, see `_key`; empty where masks hold class numbers."""
COLOURED = 1 << 24
"""Added to the keys of colours, so that a legend tells what it is of."""


def _legend(
    classes: int,
    values: Sequence[int] | None,
    colours: Sequence[Sequence[int]] | None,
    ignore: int | Sequence[int] | None,
) -> Legend:
    """Return what the pixels of masks mean.

    Raises:
        UserError: two classes share a level or colour, one has none, or a colour is not three numbers up to 255.
    """
    if values is not None and colours is not None:
        raise UserError("data.source.mask_values and data.source.mask_colours are both set; set one to null.")
    key = "mask_values" if colours is None else "mask_colours"
    given: Sequence[int | Sequence[int]] | None = values if colours is None else colours
    if given is None:
        given = list(range(classes)) if ignore is not None else []
    levels = [_key(each, key, colours is not None) for each in given]
    if given and len(set(levels)) != classes:
        what = "grey level" if colours is None else "colour"
        raise UserError(f"data.source.{key}={list(given)} must have another {what} for each of {classes} classes.")
    legend = {level: number for number, level in enumerate(levels)}
    if ignore is not None and legend.setdefault(_key(ignore, "ignore", colours is not None), IGNORED) != IGNORED:
        raise UserError(f"data.source.ignore={ignore} is the {key.removeprefix('mask_')[:-1]} of a class; set another.")
    return legend


def _key(value: int | Sequence[int], option: str, coloured: bool) -> int:
    if not coloured and isinstance(value, int):
        return value
    if coloured and not isinstance(value, int) and len(value) == 3 and all(0 <= part <= 255 for part in value):
        red, green, blue = value
        return COLOURED + (red << 16) + (green << 8) + blue
    wanted = "red, green and blue from 0 to 255" if coloured else "a grey level"
    raise UserError(f"data.source.{option}: {value} is not {wanted}; correct it.")


def _read_mask(path: Path, legend: Legend) -> NDArray[Any]:
    """Return class numbers `(H, W)`.

    Raises:
        BadImageError: the mask cannot be used; the text is about its image.
    """
    coloured = any(key >= COLOURED for key in legend)
    try:
        content = file_bytes(path)
        mask = _packed(decode_colours(content)) if coloured else decode_labels(content)
    except BadImageError as error:
        text = str(error)
        raise BadImageError(f"its mask {text[3:]}" if text.startswith("it ") else f"of its mask {text}") from error
    except OSError as error:
        raise BadImageError(f"its mask cannot be read: {error.strerror or error}") from error
    if not legend:
        return mask
    levels, positions = np.unique(mask, return_inverse=True)
    unknown = [level for level in levels.tolist() if level not in legend]
    if unknown and coloured:
        colour = [(unknown[0] >> shift) & 255 for shift in (16, 8, 0)]
        raise BadImageError(f"its mask has the colour {colour}, which is no class")
    if unknown:
        raise BadImageError(f"its mask has the grey level {unknown[0]}, which is no class")
    return np.array([legend[level] for level in levels.tolist()], dtype=np.uint8)[positions.reshape(mask.shape)]


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return one number `(H, W)` for each colour of `(H, W, 3)`, as `_key` has it."""
    return COLOURED + colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
