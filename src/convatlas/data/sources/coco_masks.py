"""Masks of classes from the outlines of COCO's instances; the files are those of `convatlas.data.sources.coco`.

Every pixel gets the category of the smallest object that covers it, so that what lies in front of something large is
seen; the rest is background. Crowd regions are taken like objects: their pixels are of their category.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convatlas.data.archives import printable
from convatlas.data.decoding import BadImageError, decode
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import read_image
from convatlas.data.sources.coco import (
    LAYOUT,
    Entry,
    SplitFile,
    leave_out_unlisted,
    read_splits,
    said_of,
    usable_images,
)
from convatlas.data.sources.slices import SliceCollector

__all__ = ["load", "outline"]

FARTHEST = 1e5
"""Pixels from an image's corner: an outline that reaches farther is no outline."""


def load(
    root: Path,
    *,
    train: str = "train2017",
    test: str | None = "val2017",
    classes: Sequence[str] | None = None,
    image_size: int = 256,
    title: str | None = None,
    origin: str | None = None,
    licence: str | None = None,
) -> RawDataset:
    """Read all images that an annotation file has, scaled so that the longer side has `image_size` pixels.

    Args:
        root: see the head of `convatlas.data.sources.coco`.
        train: the split to train on; validation is cut from it.
        test: the split that is the official test split; null leaves the test to `data.split.test`.
        classes: names of the categories to take, in the order of the class numbers from 1 on; others are background.
            Null takes all.
        image_size: side of the square images in the data set; what is not square gets black borders.
        title: for the data card, as the next two; null takes what the files say of themselves.
        origin: who made the images.
        licence: on which terms.

    Raises:
        UserError: as `convatlas.data.sources.coco.load`.
    """
    files, names = read_splits(root, train, test, classes, title or LAYOUT, outlines=True)
    described, by, terms = said_of(files)
    wanted = names if classes is None else list(classes)
    collector = SliceCollector(["background", *wanted], image_size, None, ignores=True, with_spacing=False)
    in_test: list[bool] = []
    for file in files:
        _add_file(collector, file, wanted)
        in_test += [file.split == test] * (len(collector.names) - len(in_test))
    leave_out_unlisted(collector, files)
    raw = collector.dataset(
        title=title or described,
        origin=origin or by,
        licence=licence or terms,
        notes=["Where objects overlap, a pixel is of the smallest; images are scaled to one size."],
    )
    raw.groups, raw.percentiles = None, False
    if any(in_test) and not all(in_test):
        raw.official_split = np.where(in_test, "test", "train")
    return raw


def _add_file(collector: SliceCollector, file: SplitFile, wanted: Sequence[str]) -> None:
    objects: dict[Any, list[Entry]] = {}
    for entry in file.annotations:
        if isinstance(entry.get("image_id"), int):
            objects.setdefault(entry["image_id"], []).append(entry)
    images = dict(usable_images(collector, file))
    for number, entry in sorted(images.items(), key=lambda item: (item[1]["file_name"], item[0])):
        name = f"{file.split}/{printable(entry['file_name'])}"
        declared = entry.get("width"), entry.get("height")
        try:
            found = decode(read_image(file.folder / entry["file_name"]), 3, declared=declared)  # type: ignore[arg-type]
            height, width = found.size
            if all(isinstance(side, int) for side in declared) and declared != (width, height):
                raise BadImageError(
                    f"its annotation is for {declared[0]} x {declared[1]} pixels, but it has {width} x {height}"
                )
            areas = [*_areas(objects.get(number, []), file, wanted, found.size, collector, name=name)]
        except BadImageError as error:
            collector.leave_out(name, str(error))
            continue
        before = len(collector.names)
        mask = np.zeros(found.size, dtype=np.uint8)
        for area, label in sorted(areas, key=lambda each: -int(each[0].sum())):  # the largest first
            mask[area] = label
        collector.add(name, name, found.pixels, mask)
        if len(collector.names) > before:
            collector.converted.update(found.changed)


def _areas(
    entries: Sequence[Entry],
    file: SplitFile,
    wanted: Sequence[str],
    size: tuple[int, int],
    collector: SliceCollector,
    *,
    name: str,
) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Yield area and class number of the objects of an image; those whose outlines cannot be used are listed."""
    for position, entry in enumerate(entries, start=1):
        category = file.categories.get(entry.get("category_id", -1))
        if category not in wanted:
            continue
        try:
            yield outline(entry.get("segmentation"), size), wanted.index(category) + 1
        except BadImageError as error:
            collector.leave_out(f"{name}, object {position} ({category})", str(error))


def outline(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill an object's outline: polygons of `x, y` in turn, or run lengths, in an image of `size` (height, width).

    Raises:
        BadImageError: it is neither, or it covers no pixel.
    """
    from faster_coco_eval.core import mask as coco

    height, width = size
    if isinstance(segmentation, list) and segmentation and all(map(_is_polygon, segmentation)):
        filled = coco.decode(coco.frPyObjects([[float(each) for each in part] for part in segmentation], height, width))
    elif isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        filled = coco.decode(_runs(segmentation.get("counts"), height, width))
    else:
        raise BadImageError("its outline is neither polygons of three points or more nor run lengths of the image")
    area: NDArray[np.bool_] = filled.reshape(height, width, -1).any(axis=2)
    if not area.any():
        raise BadImageError("its outline covers no pixel")
    return area


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(isinstance(each, int | float) and math.isfinite(each) and abs(each) <= FARTHEST for each in part)
    )


def _runs(counts: Any, height: int, width: int) -> dict[str, Any]:
    """Return run lengths as the library takes them, after checking that they fill the image: it does not."""
    from faster_coco_eval.core import mask as coco

    if isinstance(counts, list):
        if all(isinstance(run, int) and run >= 0 for run in counts) and sum(counts) == height * width:
            found: dict[str, Any] = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            return found
    elif isinstance(counts, str) and _length(counts) == height * width:
        return {"size": [height, width], "counts": counts}
    raise BadImageError("its run lengths do not fill the image")


def _length(text: str) -> int:
    """Return how many pixels COCO's packed run lengths cover: 5 bits a character from 48 on, the sixth says "more".

    From the third run on, each is written as the difference to the one two before it.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            return -1
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return -1
        value, shift = 0, 0
    return sum(runs) if shift == 0 else -1
