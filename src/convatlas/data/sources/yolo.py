"""Images and boxes as Ultralytics' YOLO and Roboflow write them.

    root/data.yaml                          names, and the folders or lists of images of train, val and test
    root/train/images/a.jpg                 root/images/train/a.jpg
    root/train/labels/a.txt       or        root/labels/train/a.txt

A label file has a line for each object: the number of its class, counted from 0, and centre, width and height of its
box, or three and more points of its outline, as shares of the image's width and height. An image without a file, or
with an empty one, shows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convatlas.core.errors import UserError
from convatlas.core.files import read_yaml
from convatlas.data.archives import printable, read_text
from convatlas.data.decoding import BadImageError, upright_size
from convatlas.data.image_files import SUFFIXES, pictures_below
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import BoxCollector, Flaw, MarkedObject, read_image
from convatlas.data.sources.slices import require_folder
from convatlas.data.squares import Fit

__all__ = ["load"]

TITLE = "Images with boxes in the layout of YOLO"
DECIMALS = 3
"""Of pixels: what is less comes of rounded shares, and would let a box reach over the edge by nothing."""


def load(
    root: Path,
    *,
    file: str = "data.yaml",
    classes: Sequence[str] | None = None,
    image_size: int = 320,
    fit: Fit = "letterbox",
    title: str = TITLE,
    origin: str | None = None,
    licence: str | None = None,
) -> RawDataset:
    """Read all images; outlines become the boxes around them.

    Without a test split, `val` is the test; with one, it joins `train`, and `data.split.validation` cuts validation.

    Args:
        root: see the head of this file.
        file: the description below `root`.
        classes: names to take, in the order of the class numbers; null takes all.
        image_size: side of the square images in the data set.
        fit: "letterbox" keeps the proportions and adds black borders, "stretch" scales both sides to `image_size`.
        title: for the data card, as the next two; null takes what Roboflow wrote into the description.
        origin: who made the images.
        licence: on which terms.

    Raises:
        UserError: the description or a folder is missing or wrong, or not one image can be used.
    """
    require_folder(root, title, f"Put {file} and the folders of images and labels there, or set data.root.")
    path = root / file
    described = read_yaml(path, "put the description of the set there, or name it in data.source.file.")
    names = _names(described, path)
    unknown = sorted(set(classes or []) - set(names))
    if unknown:
        raise UserError(f"data.source.classes: {path} has no class {unknown[0]}; it has {', '.join(names)}.")
    splits = {split: _images(path, described, split) for split in ("train", "val", "test") if described.get(split)}
    if "train" not in splits:
        raise UserError(f"{path} names no `train`; correct it.")
    if not any(splits.values()):
        raise UserError(f"{path}: there is no image in {', '.join(splits)}; correct its paths, or set data.root.")
    as_test = "test" if "test" in splits else "val"
    collector = BoxCollector(title, names if classes is None else classes, image_size, fit)
    for split, images in splits.items():
        for image in images:
            _add(collector, image, root, names, in_test=split == as_test)
    _leave_out_labels(collector, [image for images in splits.values() for image in images], root)
    about = described.get("roboflow") if isinstance(described.get("roboflow"), dict) else {}
    return collector.dataset(
        origin=origin or about.get("url") or "picture files", licence=licence or about.get("license") or "not stated"
    )


# ---- the description ------------------------------------------------------------------------------------------------


def _names(described: Any, path: Path) -> list[str]:
    """Return the names of the classes, which may be a list or be numbered."""
    names = described.get("names") if isinstance(described, dict) else None
    if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise UserError(f"{path} has no `names` of the classes, a list or numbered from 0; correct it.")
    count = described.get("nc", len(names))
    if count != len(names):
        raise UserError(f"{path}: nc is {count}, but there are {len(names)} names; correct it.")
    return [str(name) for name in names]


def _images(path: Path, described: Mapping[str, Any], split: str) -> list[Path]:
    """Return the images of a split: those of folders, or of text files that list them."""
    given = described[split]
    images: list[Path] = []
    for each in given if isinstance(given, list) else [given]:
        place = _place(path, described, str(each))
        if place is None:
            raise UserError(f"{path}: {split} is {each}, and there is no such folder or file; correct it.")
        if place.is_dir():
            images += pictures_below(place)[0]
        else:
            lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
            images += [place.parent / line if not Path(line).is_absolute() else Path(line) for line in lines]
    return images


def _place(path: Path, described: Mapping[str, Any], name: str) -> Path | None:
    """Find what a description names: from its `path`, from its own folder, or without `../`, as Roboflow has it."""
    bases = [path.parent, *([path.parent / str(described["path"])] if described.get("path") else [])]
    inside = name
    while inside.startswith("../"):
        inside = inside[3:]
    candidates = [base / each for base in bases[::-1] for each in (name, inside)]
    return next((each for each in candidates if each.exists()), None)


# ---- images ---------------------------------------------------------------------------------------------------------


def _label_file(image: Path) -> Path:
    """Return where the labels of an image lie: the last folder `images` of its path is `labels` there."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _add(collector: BoxCollector, image: Path, root: Path, names: Sequence[str], *, in_test: bool) -> None:
    name = _shown(image, root)
    labels = _label_file(image)
    try:
        size = upright_size(read_image(image))
    except BadImageError as error:
        text = str(error)
        collector.leave_out(name, "it is listed, but there is no file" if "no image" in text else text)
        return
    lines = read_text(labels).splitlines() if labels.is_file() else []
    objects = [_object(line, names, size) for line in lines if line.strip()]
    collector.add(name, image, objects, declared=None, in_test=in_test)


def _object(line: str, names: Sequence[str], size: tuple[int, int]) -> MarkedObject:
    """Read a line of a label file, for an image of `size` (width, height)."""
    words = line.split()
    try:
        number, *shares = int(words[0]), *map(float, words[1:])
    except ValueError:
        return MarkedObject(words[0], None, Flaw("unreadable", f"its line {line.strip()[:60]!r} is not of numbers"))
    if not 0 <= number < len(names):
        last = len(names) - 1
        reason = f"its class number {number} is beyond the names of data.yaml, 0 to {last}"
        return MarkedObject(f"class {number}", None, Flaw("of another class", reason))
    width, height = size
    if len(shares) == 4:
        x, y, wide, high = shares
        corners = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    elif len(shares) >= 6 and len(shares) % 2 == 0:
        corners = (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
    else:
        reason = f"its line has {len(shares)} figures, neither four nor three points or more"
        return MarkedObject(names[number], None, Flaw("without a box", reason))
    x1, y1, x2, y2 = (round(share * side, DECIMALS) for share, side in zip(corners, (width, height) * 2, strict=True))
    return MarkedObject(names[number], (x1, y1, x2, y2))


def _leave_out_labels(collector: BoxCollector, images: Sequence[Path], root: Path) -> None:
    """List the label files beside those of the images that belong to no image."""
    known = {_label_file(image).resolve() for image in images}
    folders = {path.parent for path in known}
    for folder in sorted(each for each in folders if each.is_dir()):
        for path in sorted(folder.glob("*.txt")):
            is_list = any(path.with_suffix(suffix).exists() for suffix in SUFFIXES) or path.name == "classes.txt"
            if path.resolve() not in known and not is_list:
                collector.leave_out(_shown(path, root), "there are labels, but no image")


def _shown(path: Path, root: Path) -> str:
    inside = path.resolve().is_relative_to(root.resolve())
    return printable(path.resolve().relative_to(root.resolve()) if inside else path)
