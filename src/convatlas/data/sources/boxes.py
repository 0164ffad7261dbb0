"""Photographs with boxes on their way into a data set: checked, and brought to one size.

What is wrong with an image or with one of its boxes does not stop the others: it is left out and listed, with its name
and the reason, in the data card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import file_bytes
from convatlas.data.decoding import BadImageError, decode, one_colour
from convatlas.data.raw import RawDataset
from convatlas.data.spool import Spool
from convatlas.data.squares import Fit, Geometry, fit, fit_geometry

__all__ = ["NO_AREA", "BoxCollector", "Flaw", "MarkedObject", "leaves_folder", "named"]

EDGE = 1.0
"""A box that reaches out of its image by so many pixels comes of another way to count them, and is no mistake."""
LEAST_INSIDE = 0.5
"""A box of which a smaller part lies inside its image is left out; a larger one is cut at the image's edge."""

LARGEST_SIDE = 8192
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

    Raises:
        UserError: a class is named twice, or `image_size` or `fit` cannot be.
    """

    def __init__(self, title: str, classes: Sequence[str], image_size: int, fit: Fit) -> None:
        if image_size < 16:
            raise UserError(f"data.source.image_size={image_size} leaves nothing to see; use 16 or more.")
        if image_size > LARGEST_SIDE:
            raise UserError(f"data.source.image_size={image_size} is too large; use {LARGEST_SIDE} or less.")
        if fit not in {"letterbox", "stretch"}:
            raise UserError(f"data.source.fit={fit} is not known; use letterbox or stretch.")
        if not classes:
            raise UserError(f"{title}: data.source.classes=[] names no class; name one or more.")
        twice = [name for name, count in Counter(["background", *classes]).items() if count > 1]
        if twice:
            raise UserError(f"{title}: {twice[0]} is the name of two classes; correct data.source.classes or the file.")
        self.title = title
        self.classes = ["background", *classes]
        self.side = image_size
        self.fit = fit
        self.left_out: list[tuple[str, str]] = []
        self._images = Spool()
        self._names: list[str] = []
        self._boxes: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int64]] = []
        self._in_test: list[bool] = []
        self._objects = 0
        self._flaws: Counter[str] = Counter()
        self._cut: dict[str, float] = {}
        self._converted: Counter[str] = Counter()

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
            image = decode(read_image(path), 3, declared=declared)
            height, width = image.size
            if declared is not None and declared != (width, height):
                wanted = " x ".join(map(str, declared))
                raise BadImageError(f"its annotation is for {wanted} pixels, but it has {width} x {height}")
            if flat := one_colour(image.pixels):
                raise BadImageError(flat)
        except BadImageError as error:
            self.leave_out(name, str(error))
            return
        boxes, labels = self._usable(name, objects, (width, height))
        if objects and not boxes:
            self.leave_out(name, f"none of its {named(len(objects), 'object')} can be used, and it is not background")
            return
        self._images.append(fit(image.pixels, self.side, self.fit))
        self._boxes.append(self._fitted_boxes(boxes, fit_geometry(height, width, self.side, self.fit)))
        self._labels.append(np.array(labels, dtype=np.int64))
        self._names.append(name)
        self._in_test.append(in_test)
        self._converted.update(image.changed)

    def dataset(self, *, origin: str, licence: str, notes: Sequence[str] = ()) -> RawDataset:
        """Make the data set.

        Raises:
            UserError: no image is usable.
        """
        if not self._names:
            file, reason = self.left_out[0] if self.left_out else ("the folder", "there is nothing in it")
            raise UserError(f"{self.title}: no image is usable; {file}: {reason}.")
        split = np.where(self._in_test, "test", "train")
        return RawDataset(
            images=self._images.array(),
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
            fitted=self.fit,
            converted=self._converted,
            notes=[*self._notes(), *notes],
        )

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

    def _fitted_boxes(self, boxes: list[NDArray], geometry: Geometry) -> NDArray[np.float32]:
        corners: NDArray = geometry.forward(np.array(boxes).reshape(-1, 4))
        return corners.clip(0, self.side).astype(np.float32)

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
        return notes


def read_image(path: Path) -> bytes:
    """Return the bytes of an annotated image.

    Raises:
        BadImageError: it is missing or cannot be read.
    """
    try:
        return file_bytes(path)
    except FileNotFoundError as error:
        raise BadImageError("there is an annotation, but no image") from error
    except OSError as error:
        raise BadImageError(f"the file cannot be read: {error.strerror or error}") from error


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
