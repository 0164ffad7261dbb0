"""Images and boxes in the layout of COCO.

Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick, "Microsoft COCO: Common Objects in Context" (ECCV 2014).

    root/annotations/instances_<split>.json      images, categories and annotations of a split, such as train2017
    root/<split>/                                its images; root/images/<split>/ or root/images/ are found too

A box is `x, y, width, height` in pixels from the image's left and upper edge. Numbers of categories may have gaps (in
COCO 80 categories have numbers up to 90): the classes are the categories in the order of their numbers, from 1 on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from convatlas.core.errors import UserError
from convatlas.data.archives import printable, read_text
from convatlas.data.image_files import pictures_below
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import BoxCollector, Flaw, MarkedObject, leaves_folder, named
from convatlas.data.sources.slices import SliceCollector, require_folder
from convatlas.data.squares import Fit

__all__ = ["SplitFile", "leave_out_unlisted", "load", "read_splits", "said_of", "usable_images"]

Entry: TypeAlias = dict[str, Any]
Categories: TypeAlias = dict[int, str]

Collector: TypeAlias = BoxCollector | SliceCollector
LAYOUT = "Images with boxes in the layout of COCO"
LICENCE = "annotations: CC BY 4.0; photographs of Flickr, each with a licence of its own"
CROWD = Flaw("crowds", "it is a crowd region, not an object")
CROWD_NOTE = (
    "Crowd regions are neither trained on nor looked for in the test. COCO's own evaluation passes over what is found "
    "in them; here that counts as wrong, so that the average precision is a little lower."
)


@dataclass(frozen=True)
class SplitFile:
    """One annotation file.

    Attributes:
        path: where it is.
        split: the name of its split.
        folder: with its images.
        images, annotations: its entries, dictionaries of any content.
        categories: names by number, in the order of the numbers.
        info: what the file says of itself.
    """

    path: Path
    split: str
    folder: Path
    images: list[Entry]
    annotations: list[Entry]
    categories: Categories
    info: Entry


def load(
    root: Path,
    *,
    train: str = "train2017",
    test: str | None = "val2017",
    classes: Sequence[str] | None = None,
    image_size: int = 320,
    fit: Fit = "letterbox",
    title: str | None = None,
    origin: str | None = None,
    licence: str | None = None,
) -> RawDataset:
    """Read all images that an annotation file has.

    Args:
        root: see the head of this file.
        train: the split to train on; validation is cut from it.
        test: the split that is the official test split, in COCO `val2017`, as no annotations of the test images are
            published; null leaves the test to `data.split.test`.
        classes: names of the categories to take, in the order of the class numbers; objects of others are left out.
            Null takes all.
        image_size: side of the square images in the data set.
        fit: "letterbox" keeps the proportions and adds black borders, "stretch" scales both sides to `image_size`.
        title: of the data set, for the data card, as the next two; null takes what the files say of themselves, and
            COCO's own where they name cocodataset.org.
        origin: who made the images.
        licence: on which terms.

    Raises:
        UserError: a file or a folder is missing, a file is not of this form, the splits' categories differ, an option
            is wrong, or not one image can be used.
    """
    files, names = read_splits(root, train, test, classes, title or LAYOUT)
    described, by, terms = said_of(files)
    collector = BoxCollector(title or described, names if classes is None else classes, image_size, fit)
    notes = [note for file in files for note in _add_file(collector, file, in_test=file.split == test)]
    leave_out_unlisted(collector, files)
    if any(reason == CROWD.reason for _, reason in collector.left_out):
        notes.append(CROWD_NOTE)
    return collector.dataset(origin=origin or by, licence=licence or terms, notes=notes)


def read_splits(
    root: Path, train: str, test: str | None, classes: Sequence[str] | None, title: str, *, outlines: bool = False
) -> tuple[list[SplitFile], list[str]]:
    """Read the annotation files of both splits; returns them, and the names of all categories.

    Raises:
        UserError: see `load`.
    """
    require_folder(root, title, "Put annotations/ and the folders of images there, or set data.root.")
    if test == train:
        raise UserError(f"data.source.test={test} is data.source.train too; set another, or null.")
    wanted = {"train": train, **({} if test is None else {"test": test})}
    files = [read_split(root, key, split, outlines=outlines) for key, split in wanted.items()]
    for file in files[1:]:
        if file.categories != files[0].categories:
            raise UserError(f"{file.path} has other categories than {files[0].path}; make them equal.")
    names = list(files[0].categories.values())
    unknown = sorted(set(classes or []) - set(names))
    if unknown:
        raise UserError(f"data.source.classes: there is no category {unknown[0]}; there are {', '.join(names)}.")
    return files, names


def said_of(files: Sequence[SplitFile]) -> tuple[str, str, str]:
    """Return title, origin and licence as the files have them."""
    texts = [
        {key: str(file.info.get(key) or "").strip() for key in ("description", "contributor", "url")} for file in files
    ]
    if all("cocodataset.org" in text["url"] for text in texts):
        return "COCO", "Microsoft COCO, Common Objects in Context (Lin et al. 2014)", LICENCE
    first = texts[0]
    return first["description"] or LAYOUT, first["contributor"] or first["url"] or "picture files", "not stated"


# ---- files ----------------------------------------------------------------------------------------------------------


def read_split(root: Path, key: str, split: str, *, outlines: bool = False) -> SplitFile:
    """Read an annotation file, the outlines of objects where they are asked for.

    Raises:
        UserError: it or its folder of images is missing, or it is not in the form of COCO's instances.
    """
    path = root / "annotations" / f"instances_{split}.json"
    try:
        if not path.is_file():
            raise FileNotFoundError
        content = json.loads(read_text(path), object_hook=None if outlines else _without_outlines)
    except FileNotFoundError as error:
        there = sorted(each.stem.removeprefix("instances_") for each in path.parent.glob("instances_*.json"))
        remedy = f"set data.source.{key} to one of {', '.join(there)}" if there else "put it there, or set data.root"
        raise UserError(f"There is no {path}; {remedy}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download it again.") from error
    for part in ("images", "annotations", "categories"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path} has no list of {part}, so it is not in the form of COCO's instances; correct it.")
    return SplitFile(
        path=path,
        split=split,
        folder=_image_folder(root, split),
        images=content["images"],
        annotations=content["annotations"],
        categories=_categories(content["categories"], path),
        info=content["info"] if isinstance(content.get("info"), dict) else {},
    )


def _without_outlines(entry: Entry) -> Entry:
    """Drop what is not used while the file is read: in COCO it takes more memory than all the rest."""
    entry.pop("segmentation", None)
    return entry


def _image_folder(root: Path, split: str) -> Path:
    candidates = (root / split, root / "images" / split, root / "images")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise UserError(f"There is no folder {candidates[0]} with the images of instances_{split}.json; put it there.")


def _categories(entries: Sequence[Entry], path: Path) -> Categories:
    categories: Categories = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise UserError(f"{path}: a category has no number `id` or no `name`; correct the file.")
        if categories.setdefault(number, name) != name:
            raise UserError(f"{path}: {name} and {categories[number]} are both category {number}; correct the file.")
    if not categories:
        raise UserError(f"{path} has no category; correct the file.")
    return dict(sorted(categories.items()))


# ---- items ----------------------------------------------------------------------------------------------------------


def _add_file(collector: BoxCollector, file: SplitFile, in_test: bool) -> list[str]:
    """Add all images of a file, and return what has to be noted."""
    images = dict(usable_images(collector, file))
    objects: dict[int, list[MarkedObject]] = {number: [] for number in images}
    for position, entry in enumerate(file.annotations):
        number = entry.get("image_id")
        if _is_whole(number) and number in objects:
            objects[number].append(_object(entry, file.categories))
        else:
            name = f"{file.split}, annotation {entry.get('id', f'at position {position}')}"
            collector.leave_out(name, f"its image_id is {number!r}, which no usable image has")
    for number, entry in sorted(images.items(), key=lambda item: (item[1]["file_name"], item[0])):
        name = f"{file.split}/{entry['file_name']}"
        path = file.folder / entry["file_name"]
        collector.add(name, path, objects[number], declared=_size(entry), in_test=in_test)
    repeated = _repeated(file.annotations)
    if repeated:
        return [f"{file.path.name}: {named(repeated, 'annotation')} with the id of another; nothing depends on it."]
    return []


def usable_images(collector: Collector, file: SplitFile) -> Iterator[tuple[int, Entry]]:
    """Yield the images that can be told apart, by their number; list the others."""
    numbers = Counter(entry["id"] for entry in file.images if _is_whole(entry.get("id")))
    seen: dict[str, int] = {}
    for position, entry in enumerate(file.images):
        number, file_name = entry.get("id"), entry.get("file_name")
        if not _is_whole(number) or not isinstance(file_name, str) or not file_name:
            collector.leave_out(
                f"{file.split}, image at position {position}", "it has no number `id` or no `file_name`"
            )
            continue
        name = f"{file.split}/{file_name}"
        if leaves_folder(file_name):
            collector.leave_out(name, "its file_name leads out of the folder")
        elif numbers[number] > 1:
            collector.leave_out(
                name, f"its id {number} is that of {numbers[number]} images: whose the boxes are is open"
            )
        elif file_name in seen:
            collector.leave_out(f"{name}, image {number}", f"it is the file of image {seen[file_name]} too")
        else:
            seen[file_name] = number
            yield number, entry


def _object(entry: Entry, categories: Categories) -> MarkedObject:
    number, box = entry.get("category_id"), entry.get("bbox")
    label = categories.get(number, f"category {number}") if _is_whole(number) else f"category {number!r}"
    corners = None
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, float) or _is_whole(side) for side in box):
        x, y, width, height = box
        corners = (float(x), float(y), float(x + width), float(y + height))
    return MarkedObject(label, corners, CROWD if entry.get("iscrowd") else None)


def _size(entry: Entry) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    return (int(width), int(height)) if _is_whole(width) and _is_whole(height) and width and height else None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _repeated(annotations: Sequence[Entry]) -> int:
    """Count the annotations whose id an earlier one has."""
    numbers = [entry["id"] for entry in annotations if _is_whole(entry.get("id"))]
    return len(numbers) - len(set(numbers))


def leave_out_unlisted(collector: Collector, files: Sequence[SplitFile]) -> None:
    """List the pictures in the folders that no annotation file has; two splits may share a folder."""
    for folder in sorted({file.folder for file in files}):
        entries = [entry for file in files if file.folder == folder for entry in file.images]
        listed = {str(entry.get("file_name")) for entry in entries}
        pictures, others = pictures_below(folder)
        for path in pictures:
            if path.relative_to(folder).as_posix() not in listed:
                collector.leave_out(f"{folder.name}/{_shown(path, folder)}", "it has no annotation: no file lists it")
        for path in others:
            collector.leave_out(f"{folder.name}/{_shown(path, folder)}", "it is no image by its name")


def _shown(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder))
