"""Checks of a raw data set before it is split and written.

A wrong structure (types, shapes, lengths) stops the preparation. A bad item (a file that cannot be decoded, a label out
of range, a box outside its image, an image of one colour) is left out and listed in the data card with its reason.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.duplicates import first_of
from convatlas.data.examination import Examination, examine
from convatlas.data.image_files import ImageFiles
from convatlas.data.raw import IGNORED, RawDataset
from convatlas.data.spool import Items, chunks

__all__ = ["Findings", "alike_names", "count_classes", "empty_classes", "verify"]


@dataclass(frozen=True)
class Findings:
    """What the verification of a data set found.

    Attributes:
        kept: positions of the items that are used, ascending.
        rejected: `(position, reason)` of every item that is left out.
        duplicates: used images that are equal to an earlier one in every byte.
        conflicting: pairs of positions `(first, copy)` of equal images with different annotations; both are used.
        examination: what was found of every image, used or not.
        names: of all items of the source, where they have any.
    """

    kept: Items
    rejected: tuple[tuple[int, str], ...]
    duplicates: int
    conflicting: tuple[tuple[int, int], ...]
    examination: Examination
    names: list[str] | None = None

    def called(self, item: int) -> int | str:
        """Return the name of an item of the source, or its position where it has none."""
        return self.names[item] if self.names else item

    @property
    def copies(self) -> Items:
        """For each used image the first used one that is equal to it, as positions among the used."""
        return first_of(self.examination.copies[self.kept].tolist())


def verify(raw: RawDataset, name: str, channels: int = 3, saved: Path | None = None) -> Findings:
    """Check a data set; images in files are decoded for it.

    Args:
        raw: as the source returned it.
        name: of the data set, for messages.
        channels: that images in files are decoded to.
        saved: folder for what was found so far of images in files, see `convatlas.data.examination`.

    Raises:
        UserError: the structure is wrong, or no item is usable.
    """
    for complaint in _structural_complaints(raw):
        raise UserError(f"{name}: {complaint} Correct the source.")
    examination = examine(raw.images, channels, saved)
    copies = examination.copies
    reasons = dict(examination.complaints)
    for item, reason in [*_bad_annotations(raw, examination), *_leaked(raw, copies)]:
        reasons.setdefault(item, reason)
    kept = np.array([item for item in range(len(raw)) if item not in reasons], dtype=np.int64)
    if not len(kept):
        first = raw.names[0] if raw.names else "image 0"
        raise UserError(f"{name}: not one of {len(raw)} images is usable; {first}: {reasons[0]}. Correct the source.")
    earlier = {int(copies[item]): int(item) for item in kept[::-1]}  # the first used item of each set of copies
    pairs = [(earlier[int(copies[item])], int(item)) for item in kept if earlier[int(copies[item])] != item]
    return Findings(
        kept=kept,
        rejected=tuple(sorted(reasons.items())),
        duplicates=len(pairs),
        conflicting=tuple(pair for pair in pairs if not _same_annotation(raw, *pair)),
        examination=examination,
        names=raw.names,
    )


def alike_names(classes: Sequence[str]) -> str:
    """Return a sentence on classes whose names differ in capitals, blanks or the spelling of accents alone, or ""."""
    found: dict[str, list[str]] = {}
    for name in classes:
        found.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    alike = ["/".join(map(repr, names)) for names in found.values() if len(names) > 1]
    return (
        f"These class names differ only in case, blanks or accents, and stay separate classes: {', '.join(alike)}."
        if alike
        else ""
    )


def empty_classes(raw: RawDataset, parts: Mapping[str, Items], name: str) -> dict[str, list[str]]:
    """List the classes that do not occur in each split.

    Args:
        raw: the verified data set.
        parts: positions of the items of each split.
        name: of the data set, for messages.

    Raises:
        UserError: a class does not occur in the training split, so that no net can learn it.
    """
    missing = {}
    for split, items in parts.items():
        counts = count_classes(raw.take(items))
        missing[split] = [label for label, count in counts.items() if not count]
    if missing["train"]:
        raise UserError(
            f"{name}: no training image has the class {' or '.join(missing['train'][:20])}; lower "
            "data.split.validation or data.split.test, or name the classes to take in data.source.classes, where the "
            "source has that option, and set data.num_classes."
        )
    return {split: names for split, names in missing.items() if names}


def count_classes(raw: RawDataset) -> dict[str, int]:
    """Count by class: images in classification, boxes in detection (no background), pixels in segmentation."""
    classes = len(raw.classes)
    if raw.masks is not None:
        counts = np.zeros(classes, dtype=np.int64)
        for some in chunks(raw.masks):
            counts += np.bincount(some.reshape(-1), minlength=classes)[:classes]  # what is ignored counts nowhere
    elif raw.labels is not None:
        counts = np.bincount(raw.labels, minlength=classes)
    else:
        assert raw.box_labels is not None
        counts = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *raw.box_labels]), minlength=classes)
    first = 1 if raw.boxes is not None else 0
    return {label: int(count) for label, count in list(zip(raw.classes, counts, strict=True))[first:]}


# ---- structure ------------------------------------------------------------------------------------------------------


def _structural_complaints(raw: RawDataset) -> Iterator[str]:
    """Yield sentences; the later ones hold only where the earlier ones do not."""
    yield from _wrong_images(raw)
    count = len(raw)
    try:
        raw.task  # noqa: B018 - it raises
    except ValueError as error:
        yield f"the task is not clear: {error}"
        return
    if len(raw.classes) < 2 or len({*raw.classes, ""}) <= len(raw.classes):
        yield f"classes={raw.classes} must be two or more different names."
    if raw.masks is not None:
        yield from _wrong_array("masks", raw.masks, np.uint8, (count, *raw.pixels.shape[2:]))
    if raw.labels is not None:
        yield from _wrong_array("labels", raw.labels, np.int64, (count,))
    if raw.boxes is not None:
        yield from _wrong_boxes(raw)
    if raw.spacing is not None:
        yield from _wrong_array("spacing", raw.spacing, np.float32, (count, 2))
    if raw.groups is not None:
        yield from _wrong_array("groups", raw.groups, np.int64, (count,))
    if raw.official_split is not None:
        if raw.official_split.shape != (count,):
            yield f"official_split has shape {raw.official_split.shape}, not ({count},)."
        elif set(np.unique(raw.official_split).tolist()) != {"train", "test"}:
            yield f"official_split has the values {np.unique(raw.official_split).tolist()}, not train and test."


def _wrong_images(raw: RawDataset) -> Iterator[str]:
    images = raw.images
    if isinstance(images, ImageFiles):
        if not len(images):
            yield "there are no images."
        if raw.masks is not None:
            yield "images in files cannot have masks; a source with masks has to return arrays."
    elif images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        yield f"images are {images.dtype} of shape {images.shape}, not uint8 (N, C, H, W) with N > 0."


def _wrong_array(what: str, array: NDArray | None, dtype: type, shape: tuple[int, ...]) -> Iterator[str]:
    assert array is not None
    if array.dtype != dtype or array.shape != shape:
        yield f"{what} are {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} of shape {shape}."


def _wrong_boxes(raw: RawDataset) -> Iterator[str]:
    assert raw.boxes is not None
    assert raw.box_labels is not None
    if len(raw.boxes) != len(raw) or len(raw.box_labels) != len(raw):
        yield f"there are {len(raw)} images, boxes for {len(raw.boxes)} and box_labels for {len(raw.box_labels)}."
        return
    for item, (boxes, labels) in enumerate(zip(raw.boxes, raw.box_labels, strict=True)):
        yield from _wrong_array(f"boxes[{item}]", boxes, np.float32, (len(labels), 4))
        yield from _wrong_array(f"box_labels[{item}]", labels, np.int64, (len(boxes),))


# ---- single items ---------------------------------------------------------------------------------------------------


def _bad_annotations(raw: RawDataset, examination: Examination) -> Iterator[tuple[int, str]]:
    last = len(raw.classes) - 1
    if raw.labels is not None:
        for item in np.flatnonzero((raw.labels < 0) | (raw.labels > last)):
            yield int(item), f"label {raw.labels[item]} is outside 0..{last}"
    elif raw.masks is not None:
        flat = ((some * (some != IGNORED)).reshape(len(some), -1) for some in chunks(raw.masks))
        highest = np.concatenate([some.max(axis=1) for some in flat])
        for item in np.flatnonzero(highest > last):
            yield int(item), f"mask value {highest[item]} is outside 0..{last}"
    else:
        yield from _bad_boxes(raw, examination.sizes)


def _bad_boxes(raw: RawDataset, sizes: Items) -> Iterator[tuple[int, str]]:
    assert raw.boxes is not None
    assert raw.box_labels is not None
    for item, (boxes, labels) in enumerate(zip(raw.boxes, raw.box_labels, strict=True)):
        height, width = sizes[item]
        x1, y1, x2, y2 = boxes.T
        # Written so that a comparison with NaN, which is false, rejects the box.
        has_area = (x1 < x2) & (y1 < y2)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)
        known = (labels >= 1) & (labels < len(raw.classes))
        if not has_area.all():
            yield item, f"box {boxes[~has_area][0].tolist()} has no area"
        elif not inside.all():
            yield item, f"box {boxes[~inside][0].tolist()} reaches out of the image of {width} x {height} pixels"
        elif not known.all():
            yield item, f"box label {labels[~known][0]} is outside 1..{len(raw.classes) - 1}"


def _leaked(raw: RawDataset, copies: Items) -> Iterator[tuple[int, str]]:
    """Yield training images that are equal to an official test image: the test stays as it is, they have to go."""
    if raw.official_split is None:
        return
    in_test = raw.official_split == "test"
    test_item = {int(copies[item]): int(item) for item in np.flatnonzero(in_test)[::-1]}
    for item in np.flatnonzero(~in_test):
        if int(copies[item]) in test_item:
            other = test_item[int(copies[item])]
            which = raw.names[other] if raw.names else f"item {other}"
            yield int(item), f"the same image is {which}, of the official test split"


def _same_annotation(raw: RawDataset, one: int, other: int) -> bool:
    if raw.labels is not None:
        return bool(raw.labels[one] == raw.labels[other])
    if raw.masks is not None:
        return np.array_equal(raw.masks[one], raw.masks[other])
    assert raw.boxes is not None
    assert raw.box_labels is not None
    return np.array_equal(raw.boxes[one], raw.boxes[other]) and np.array_equal(
        raw.box_labels[one], raw.box_labels[other]
    )
