"""Images and boxes in the layout of Pascal VOC.

Everingham, Van Gool, Williams, Winn, Zisserman, "The Pascal Visual Object Classes (VOC) Challenge" (International
Journal of Computer Vision, 2010).

    root/Annotations/<name>.xml                          one file an image: its size, and a name and a box an object
    root/JPEGImages/<name>.jpg                           or another kind of picture
    root/ImageSets/Main/{train,val,trainval,test}.txt    names of the images of each split; may be missing

The three folders may also lie up to three folders deeper, and several times, as in VOCdevkit/VOC2007 and VOC2012: all
that are found are taken together. A box's corners are pixels, both are part of it, and the first pixel is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from convatlas.core.errors import UserError
from convatlas.data.sources import RawDataset
from convatlas.data.sources.boxes import (
    NO_AREA,
    BoxCollector,
    Fit,
    Flaw,
    MarkedObject,
    leaves_folder,
    named,
    picture_files,
)
from convatlas.data.sources.slices import require_folder

__all__ = ["load"]

LISTS = ("train", "val", "trainval", "test")
DIFFICULT = Flaw("marked as difficult", "it is marked as difficult")
DIFFICULT_NOTE = (
    "Objects marked as difficult are neither trained on nor looked for in the test. The challenge's own evaluation "
    "passes over what is found on them; here that counts as wrong, so that the average precision is a little lower."
)


class UnusableError(Exception):
    """Why a file cannot be used, as the end of a sentence."""


@dataclass(frozen=True)
class Tree:
    """One folder with Annotations/ in it: the folder, and what its names begin with in the data card."""

    folder: Path
    prefix: str


@dataclass(frozen=True)
class Annotation:
    """What a file says of an image."""

    size: tuple[int, int] | None
    objects: list[MarkedObject]


def load(
    root: Path,
    *,
    classes: Sequence[str],
    image_size: int = 320,
    fit: Fit = "letterbox",
    test_list: str | None = "test",
    title: str = "Pascal VOC",
    origin: str = "picture files with annotations in the form of Pascal VOC",
    licence: str = "not stated",
) -> RawDataset:
    """Read all images that have an annotation and, where there are lists, stand in one.

    Args:
        root: see the head of this file.
        classes: names of the classes of objects, without the background; other objects are left out.
        image_size: side of the square images in the data set.
        fit: "letterbox" keeps the proportions and adds black borders, "stretch" scales both sides to `image_size`.
        test_list: the list in ImageSets/Main that is the official test split; null, or a list that is not there,
            leaves the test to `data.split.test`. The other lists are taken together.
        title: of the data set.
        origin: for the data card.
        licence: for the data card.

    Raises:
        UserError: a folder is missing, an option is wrong, or not one image can be used.
    """
    require_folder(root, title, "Put Annotations/ and JPEGImages/ there, or set data.root.")
    if test_list not in {None, *LISTS}:
        raise UserError(f"data.source.test_list={test_list} is no list of Pascal VOC; use one of {', '.join(LISTS)}.")
    trees = _trees(root, title)
    names = {tree: _names(tree) for tree in trees}
    collector = BoxCollector(title, classes, image_size, fit, at_most=sum(map(len, names.values())))
    notes = []
    for tree in trees:
        notes += _add_tree(collector, tree, names[tree], test_list)
    if any(reason == DIFFICULT.reason for _, reason in collector.left_out):
        notes.append(DIFFICULT_NOTE)
    return collector.dataset(origin=origin, licence=licence, notes=notes)


def _trees(root: Path, title: str) -> list[Tree]:
    for pattern in ("Annotations", "*/Annotations", "*/*/Annotations", "*/*/*/Annotations"):
        found = sorted(path.parent for path in root.glob(pattern) if path.is_dir())
        if found:
            break
    else:
        raise UserError(
            f"{title}: there is no folder Annotations in {root}. Put Annotations/, JPEGImages/ and, for the official "
            "splits, ImageSets/Main/ there, or set data.root."
        )
    for folder in found:
        require_folder(folder / "JPEGImages", title, "Put the images there, beside Annotations/.")
    return [Tree(folder, f"{folder.relative_to(root).as_posix()}/" if len(found) > 1 else "") for folder in found]


def _names(tree: Tree) -> list[str]:
    """Return the names, without suffix, of all that is annotated, is an image or stands in a list."""
    annotated = [path.stem for path in (tree.folder / "Annotations").glob("*.xml")]
    pictures = [path.stem for path in picture_files(tree.folder / "JPEGImages")]
    return sorted({*annotated, *pictures, *(name for names in _lists(tree).values() for name in names)})


def _lists(tree: Tree) -> dict[str, set[str]]:
    """Return the names in each list; a list of one class, which has a second column, is none of them."""
    found = {name: tree.folder / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
    try:
        return {
            name: {line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
            for name, path in found.items()
            if path.is_file()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"A list in {tree.folder / 'ImageSets' / 'Main'} cannot be read: {error}.") from error


def _add_tree(collector: BoxCollector, tree: Tree, names: Iterable[str], test_list: str | None) -> list[str]:
    """Add all images of a tree, and return what has to be noted."""
    lists = _lists(tree)
    listed = set().union(*lists.values())
    in_test = lists.get(test_list or "", set())
    pictures: dict[str, list[Path]] = {}
    for path in picture_files(tree.folder / "JPEGImages"):
        pictures.setdefault(path.stem, []).append(path)
    for name in names:
        try:
            if lists and name not in listed:
                raise UnusableError("no list in ImageSets/Main has it")
            annotation = _read(tree.folder / "Annotations", name)
            path = _picture(pictures.get(name, []))
        except UnusableError as error:
            collector.leave_out(tree.prefix + name, str(error))
            continue
        collector.add(tree.prefix + name, path, annotation.objects, declared=annotation.size, in_test=name in in_test)
    both = in_test & lists.get("train", set()) if test_list != "train" else set()
    return [f"In train.txt too, but in the test alone: {named(len(both), 'image')}."] if both else []


def _picture(paths: list[Path]) -> Path:
    if not paths:
        raise UnusableError("there is an annotation, but no image")
    if len(paths) > 1:
        raise UnusableError(f"there are {len(paths)} images of its name, {' and '.join(path.name for path in paths)}")
    return paths[0]


def _read(folder: Path, name: str) -> Annotation:
    """Read the annotation of an image.

    The image is the one of the annotation's name. Its own `filename` is often stale, and is not followed.

    Raises:
        UnusableError: there is none, or it is not of this form.
    """
    if leaves_folder(name):  # a list may hold anything
        raise UnusableError("its name leads out of the folder")
    try:
        root = parse_xml((folder / f"{name}.xml").read_bytes())
    except FileNotFoundError as error:
        raise UnusableError("it has no annotation") from error
    except (OSError, expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise UnusableError(f"its annotation cannot be read as XML ({error})") from error
    if root.tag != "annotation":
        raise UnusableError(f"its annotation begins with <{root.tag}>, not with <annotation>")
    if leaves_folder(root.findtext("filename", "").strip() or name):
        raise UnusableError("the filename in its annotation leads out of the folder")
    return Annotation(_size(root), [_object(element) for element in root.findall("object")])


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse XML from anywhere: a document type, and with it every entity that could grow or fetch, is refused.

    Raises:
        ValueError: it has a document type.
        xml.parsers.expat.ExpatError: it is no XML.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which may hide anything; remove <!DOCTYPE ...>")

    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = refuse
    checker.Parse(data, True)
    return ElementTree.fromstring(data)  # noqa: S314 - what makes it dangerous was just refused


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return width and height; None where they are missing or 0, as some programs write that do not know them."""
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    return (int(width), int(height)) if width and height else None


def _object(element: ElementTree.Element) -> MarkedObject:
    label = element.findtext("name", "").strip()
    corners = [_number(element.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
    if None in corners:
        return MarkedObject(label, None)
    x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
    box = (x1 - 1, y1 - 1, x2, y2)
    if _number(element.findtext("difficult")):
        return MarkedObject(label, box, DIFFICULT)
    # by the rule two equal corners are one pixel; programs write them for a click without a drag
    return MarkedObject(label, box, NO_AREA if x2 <= x1 or y2 <= y1 else None)


def _number(text: str | None) -> float | None:
    """Return the number that stands in an element; None where there is none."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None
