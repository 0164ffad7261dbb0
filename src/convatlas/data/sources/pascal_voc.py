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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from convatlas.core.errors import UserError
from convatlas.data.archives import printable, read_text
from convatlas.data.decoding import BadImageError
from convatlas.data.image_files import pictures_below
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import NO_AREA, BoxCollector, Flaw, MarkedObject, leaves_folder, named
from convatlas.data.sources.slices import require_folder
from convatlas.data.squares import Fit

__all__ = ["load"]

LAYOUT = "Images with boxes in the layout of Pascal VOC"
OWN = (LAYOUT, "picture files", "not stated")
OFFICIAL = (
    "Pascal VOC",
    "The Pascal Visual Object Classes Challenge (Everingham et al. 2010)",
    "photographs of Flickr, on its terms of use; annotations: not stated",
)
"""Title, origin and licence."""
LISTS = ("train", "val", "trainval", "test")
DIFFICULT = Flaw("marked as difficult", "it is marked as difficult")
DIFFICULT_NOTE = (
    "Objects marked as difficult are neither trained on nor looked for in the test. The challenge's own evaluation "
    "passes over what is found on them; here that counts as wrong, so that the average precision is a little lower."
)


@dataclass(frozen=True)
class Tree:
    """One folder with Annotations/ in it: the folder, and what its names begin with in the data card."""

    folder: Path
    prefix: str


@dataclass(frozen=True)
class Annotation:
    """What a file says of an image; `database` is the collection that it names as its own."""

    size: tuple[int, int] | None
    objects: list[MarkedObject]
    database: str


def load(
    root: Path,
    *,
    classes: Sequence[str],
    image_size: int = 320,
    fit: Fit = "letterbox",
    test_list: str | None = "test",
    title: str | None = None,
    origin: str | None = None,
    licence: str | None = None,
) -> RawDataset:
    """Read all images that have an annotation and, where there are lists, stand in one.

    Args:
        root: see the head of this file.
        classes: names of the classes of objects, without the background; other objects are left out.
        image_size: side of the square images in the data set.
        fit: "letterbox" keeps the proportions and adds black borders, "stretch" scales both sides to `image_size`.
        test_list: the list in ImageSets/Main that is the official test split; null, or a list that is not there,
            leaves the test to `data.split.test`. The other lists are taken together.
        title: of the data set, for the data card, as the next two; null takes those of Pascal VOC where every
            annotation names it as its database, and otherwise says that they are not known.
        origin: who made the images.
        licence: on which terms.

    Raises:
        UserError: a folder is missing, an option is wrong, or not one image can be used.
    """
    name = title or LAYOUT
    require_folder(root, name, "Put Annotations/ and JPEGImages/ there, or set data.root.")
    if test_list not in {None, *LISTS}:
        raise UserError(f"data.source.test_list={test_list} is no list of Pascal VOC; use one of {', '.join(LISTS)}.")
    collector = BoxCollector(name, classes, image_size, fit)
    databases: set[bool] = set()
    notes = [note for tree in _trees(root, name) for note in _add_tree(collector, tree, test_list, databases)]
    if any(reason == DIFFICULT.reason for _, reason in collector.left_out):
        notes.append(DIFFICULT_NOTE)
    official = OFFICIAL if databases == {True} else OWN
    collector.title, origin, licence = (
        given or own for given, own in zip((title, origin, licence), official, strict=True)
    )
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


def _lists(tree: Tree, known: set[str]) -> dict[str, set[str]]:
    """Return the names in each list. A name may hold blanks; a second column of 1, 0 or -1 is not part of it."""
    found = {name: tree.folder / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
    lists: dict[str, set[str]] = {}
    for name, path in found.items():
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            lists[name] = {line if line in known else re.sub(r"\s+-?[01]$", "", line) for line in lines}
    return lists


def _add_tree(collector: BoxCollector, tree: Tree, test_list: str | None, databases: set[bool]) -> list[str]:
    """Add all images of a tree, and return what has to be noted; `databases`: whether annotations name Pascal VOC's."""
    images, annotated = tree.folder / "JPEGImages", tree.folder / "Annotations"
    pictures: dict[str, list[Path]] = {}
    found, others = pictures_below(images)
    for path in found:
        pictures.setdefault(path.relative_to(images).with_suffix("").as_posix(), []).append(path)
    for path in others:
        collector.leave_out(tree.prefix + printable(path.relative_to(tree.folder)), "it is no image by its name")
    known = {*pictures, *(path.relative_to(annotated).with_suffix("").as_posix() for path in annotated.rglob("*.xml"))}
    known = {name for name in known if not name.rpartition("/")[2].startswith(".")}
    lists = _lists(tree, known)
    listed = set().union(*lists.values())
    in_test = lists.get(test_list or "", set())
    for name in sorted(known | listed):
        shown = tree.prefix + printable(name)
        try:
            if lists and name not in listed:
                raise BadImageError("no list in ImageSets/Main has it")
            annotation = _read(annotated, name)
            path = _picture(pictures.get(name, []))
        except BadImageError as error:
            collector.leave_out(shown, str(error))
            continue
        databases.add(bool(re.match(r"The VOC20\d\d Database", annotation.database)))
        collector.add(shown, path, annotation.objects, declared=annotation.size, in_test=name in in_test)
    both = in_test & lists.get("train", set()) if test_list != "train" else set()
    return [f"In train.txt too, but in the test alone: {named(len(both), 'image')}."] if both else []


def _picture(paths: list[Path]) -> Path:
    if not paths:
        raise BadImageError("there is an annotation, but no image")
    if len(paths) > 1:
        raise BadImageError(f"there are {len(paths)} images of its name, {' and '.join(path.name for path in paths)}")
    return paths[0]


def _read(folder: Path, name: str) -> Annotation:
    """Read the annotation of an image.

    The image is the one of the annotation's name. Its own `filename` is often stale, and is not followed.

    Raises:
        BadImageError: there is none, or it is not of this form.
    """
    if leaves_folder(name):  # a list may hold anything
        raise BadImageError("its name leads out of the folder")
    try:
        root = parse_xml((folder / f"{name}.xml").read_bytes())
    except FileNotFoundError as error:
        raise BadImageError("it has no annotation") from error
    except (OSError, expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadImageError(f"its annotation cannot be read as XML ({error})") from error
    if root.tag != "annotation":
        raise BadImageError(f"its annotation begins with <{root.tag}>, not with <annotation>")
    if leaves_folder(root.findtext("filename", "").strip() or name):
        raise BadImageError("the filename in its annotation leads out of the folder")
    objects = [_object(element) for element in root.findall("object")]
    return Annotation(_size(root), objects, root.findtext("source/database", "").strip())


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
