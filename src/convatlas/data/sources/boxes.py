"""Photographs with boxes on their way into a data set: checked, and brought to one size.

What is wrong with an image or with one of its boxes does not stop the others: it is left out and listed, with its name
and the reason, in the data card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.sources import RawDataset

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["NO_AREA", "BoxCollector", "Fit", "Flaw", "MarkedObject", "leaves_folder", "named", "picture_files"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
"""Pillow's modes that convert to RGB without a loss that would have to be chosen, such as from 16 bits."""
EDGE = 1.0
"""A box that reaches out of its image by so many pixels comes of another way to count them, and is no mistake."""
LEAST_INSIDE = 0.5
"""A box of which a smaller part lies inside its image is left out; a larger one is cut at the image's edge."""

Fit: TypeAlias = Literal["letterbox", "stretch"]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


class Flaw(NamedTuple):
    """Why an object is left out: in two or three words for the count, and as the end of a sentence for the list."""

    kind: str
    reason: str


NO_AREA = Flaw("without area", "its box has no area")
TWICE = Flaw("marked twice", "it is marked twice")


@dataclass(frozen=True)
class MarkedObject:
    """An object as its file has it.

    Attributes:
        label: the name of its class.
        box: `x1, y1, x2, y2` in pixels from the image's left and upper edge; None where the file has no four numbers.
        flaw: why the format's own rules leave it out, if they do.
    """

    label: str
    box: tuple[float, float, float, float] | None
    flaw: Flaw | None = None


class BoxCollector:
    """Gathers photographs of different sizes with their boxes, and makes one data set of them.

    Args:
        title: of the data set, for messages.
        classes: the names of the classes of objects, without the background.
        image_size: side of the square images of the data set, in pixels.
        fit: "letterbox" scales an image until its longer side fits, and adds black borders to the shorter ones;
            "stretch" scales both sides to `image_size`. Boxes go along.
        at_most: images that may come; memory is set aside for them.

    Raises:
        UserError: a class is named twice, `image_size` or `fit` cannot be, or there is not memory enough.
    """

    def __init__(self, title: str, classes: Sequence[str], image_size: int, fit: Fit, at_most: int) -> None:
        if image_size < 16:
            raise UserError(f"data.source.image_size={image_size} leaves nothing to see; use 16 or more.")
        if fit not in {"letterbox", "stretch"}:
            raise UserError(f"data.source.fit={fit} is not known; use letterbox or stretch.")
        twice = [name for name, count in Counter(["background", *classes]).items() if count > 1]
        if twice:
            raise UserError(f"{title}: {twice[0]} is the name of two classes; correct data.source.classes or the file.")
        self.title = title
        self.classes = ["background", *classes]
        self.side = image_size
        self.fit = fit
        self.left_out: list[tuple[str, str]] = []
        self._images = self._set_aside(at_most)
        self._names: list[str] = []
        self._boxes: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int64]] = []
        self._in_test: list[bool] = []
        self._objects = 0
        self._flaws: Counter[str] = Counter()
        self._cut: dict[str, float] = {}
        self._converted: list[str] = []

    def leave_out(self, name: str, reason: str) -> None:
        """List what cannot be used."""
        self.left_out.append((name, reason))

    def add(
        self, name: str, path: Path, objects: Sequence[MarkedObject], *, declared: Size | None, in_test: bool
    ) -> None:
        """Read one image and take it with its objects, or list why not.

        An image without any object is background and is used. One with objects none of which can be used is not: it
        would be taken for background.

        Args:
            name: for the data card.
            path: of the image.
            objects: what is marked in it.
            declared: width and height as the annotation has them; an image of another size is left out, as its boxes
                are then not its own. A rotation in the EXIF data is followed unless the annotation does not.
            in_test: whether it is of the official test split.
        """
        try:
            picture, converted = _read(path, declared)
        except _UnusableError as error:
            self.leave_out(name, str(error))
            return
        boxes, labels = self._usable(name, objects, picture.size)
        if objects and not boxes:
            self.leave_out(name, f"none of its {named(len(objects), 'object')} can be used, and it is not background")
            return
        self._images[len(self._names)], ratio, shift = self._fitted(picture)
        self._boxes.append(self._fitted_boxes(boxes, ratio, shift))
        self._labels.append(np.array(labels, dtype=np.int64))
        self._names.append(name)
        self._in_test.append(in_test)
        if converted:
            self._converted.append(name)

    def dataset(self, *, origin: str, licence: str, notes: Sequence[str] = ()) -> RawDataset:
        """Make the data set.

        Raises:
            UserError: no image is usable.
        """
        count = len(self._names)
        if not count:
            file, reason = self.left_out[0] if self.left_out else ("the folder", "there is nothing in it")
            raise UserError(f"{self.title}: no image is usable; {file}: {reason}.")
        split = np.where(self._in_test, "test", "train")
        return RawDataset(
            images=self._images[:count],
            classes=self.classes,
            title=self.title,
            origin=origin,
            licence=licence,
            made=False,
            boxes=self._boxes,
            box_labels=self._labels,
            official_split=split if any(self._in_test) and not all(self._in_test) else None,
            names=self._names,
            left_out=self.left_out,
            notes=[*self._notes(), *notes],
        )

    def _set_aside(self, images: int) -> NDArray[np.uint8]:
        needed, memory = images * 3 * self.side**2, psutil.virtual_memory().total
        if needed > memory / 2:
            largest = int(self.side * (memory / 2 / needed) ** 0.5)
            raise UserError(
                f"data.source.image_size={self.side}: {images} images of that size take {needed / 1e9:.1f} GB, and "
                f"this machine has {memory / 1e9:.1f} GB of memory; use {largest} or less."
            )
        return np.zeros((images, 3, self.side, self.side), dtype=np.uint8)

    def _usable(self, name: str, objects: Sequence[MarkedObject], size: Size) -> tuple[list[NDArray], list[int]]:
        """Return the boxes, cut to the image of `size`, and class numbers of what can be used; list the rest."""
        boxes: list[NDArray] = []
        labels: list[int] = []
        seen: set[MarkedObject] = set()
        self._objects += len(objects)
        for number, each in enumerate(objects, start=1):
            flaw = self._flaw(each, size) or (TWICE if each in seen else None)
            seen.add(each)
            if flaw:
                self._flaws[flaw.kind] += 1
                self.leave_out(f"{name}, object {number} ({each.label})", flaw.reason)
                continue
            box = np.array(each.box)
            inside = _cut_to(box, size)
            reach = float(np.abs(box - inside).max())
            if reach > 0:
                self._cut[name] = max(self._cut.get(name, 0.0), reach)
            boxes.append(inside)
            labels.append(self.classes.index(each.label))
        return boxes, labels

    def _flaw(self, each: MarkedObject, size: Size) -> Flaw | None:
        """Return what is wrong with an object in an image of `size`."""
        if each.flaw:
            return each.flaw
        if each.label not in self.classes[1:]:
            return Flaw("of another class", f"its class is none of {', '.join(self.classes[1:])}")
        if each.box is None or not np.isfinite(each.box).all():
            return Flaw("without a box", "its box is not four numbers")
        x1, y1, x2, y2 = each.box
        if x2 <= x1 or y2 <= y1:
            return NO_AREA
        if _area(_cut_to(np.array(each.box), size)) < LEAST_INSIDE * _area(np.array(each.box)):
            corners = ", ".join(f"{corner:g}" for corner in each.box)
            return Flaw(
                "outside their image",
                f"its box {corners} lies outside the image of {size[0]} x {size[1]} pixels by more than a half",
            )
        return None

    def _fitted(self, picture: Image.Image) -> tuple[NDArray[np.uint8], NDArray, NDArray]:
        """Return the picture as `(3, S, S)`, and what its coordinates x and y are multiplied by, then moved by."""
        from PIL import Image

        size = np.array(picture.size)
        longer = size.max() if self.fit == "letterbox" else size
        scaled = np.maximum(1, np.rint(size * self.side / longer)).astype(int)
        shift = (self.side - scaled) // 2
        pixels = np.asarray(picture.resize((int(scaled[0]), int(scaled[1])), Image.Resampling.BILINEAR))
        fitted = np.zeros((self.side, self.side, 3), dtype=np.uint8)
        fitted[shift[1] : shift[1] + scaled[1], shift[0] : shift[0] + scaled[0]] = pixels
        return fitted.transpose(2, 0, 1), scaled / size, shift

    def _fitted_boxes(self, boxes: list[NDArray], ratio: NDArray, shift: NDArray) -> NDArray[np.float32]:
        corners = np.array(boxes).reshape(-1, 2, 2) * ratio + shift
        return corners.reshape(-1, 4).clip(0, self.side).astype(np.float32)

    def _notes(self) -> list[str]:
        way = "with black borders where they are not square" if self.fit == "letterbox" else "each side by itself"
        notes = [f"Images are scaled to {self.side} x {self.side} pixels, {way}; boxes go along."]
        if self._flaws:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._flaws.items()))
            notes.append(f"Left out of {named(self._objects, 'marked object')}: {kinds}.")
        far = [name for name, reach in self._cut.items() if reach > EDGE]
        if self._cut:
            where = f", by more than a pixel in {_listed(far)}" if far else ""
            notes.append(
                f"In {named(len(self._cut), 'image')} a box reaches over the edge by {max(self._cut.values()):g} "
                f"pixels at most and is cut there{where}."
            )
        if self._converted:
            notes.append(f"Converted to RGB: {named(len(self._converted), 'image')}, {_listed(self._converted)}.")
        return notes


class _UnusableError(Exception):
    """Why an image cannot be used, as the end of a sentence."""


def _read(path: Path, declared: Size | None) -> tuple[Image.Image, bool]:
    """Return the picture in RGB, and whether it had to be converted."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            picture: Image.Image = ImageOps.exif_transpose(file)
            if declared == file.size:
                picture = file if picture.size != file.size else picture
            mode = file.mode
            colours = picture.convert("RGB")
    except FileNotFoundError as error:
        raise _UnusableError("there is an annotation, but no image") from error
    except Exception as error:  # the decoders raise nearly every kind for a damaged file
        raise _UnusableError(f"it cannot be read as a picture ({type(error).__name__})") from error
    if mode not in EIGHT_BITS:
        raise _UnusableError(f"its pixels are of the kind {mode}, not of 8 bits a colour")
    if declared is not None and declared != colours.size:
        sizes = [" x ".join(map(str, size)) for size in (declared, colours.size)]
        raise _UnusableError(f"its annotation is for {sizes[0]} pixels, but it has {sizes[1]}")
    if (np.asarray(colours) == colours.getpixel((0, 0))).all():
        raise _UnusableError("every pixel has the same colour")
    return colours, mode != "RGB"


def picture_files(folder: Path) -> list[Path]:
    """List the pictures in a folder by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def leaves_folder(name: str) -> bool:
    """Say whether a file's name, as an annotation has it, would lead out of the folder of images."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name


def named(count: int, noun: str) -> str:
    """Return "1 image" or "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _cut_to(box: NDArray, size: Size) -> NDArray:
    width, height = size
    cut: NDArray = box.clip(0, [width, height, width, height])
    return cut


def _area(box: NDArray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
