"""A prepared data set as one page: pictures of every class, counts, what was left out, and how it was made.

It is made of the prepared folder alone, holds nothing of time or machine, and needs no network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convatlas.core.errors import UserError
from convatlas.core.files import write_text
from convatlas.core.folders import check_writable
from convatlas.data.card import Card, NearPair, Rejected
from convatlas.data.duplicates import SIMILARITY
from convatlas.data.prepared import PreparedData, Split
from convatlas.reporting.images import EmbeddedImage, as_rgb, embedded, pixels_of, scaled
from convatlas.reporting.rendering import check_generated, render
from convatlas.reporting.wording import count

__all__ = ["check_page", "render_data_page", "write_data_page"]

MOST_CLASSES = 100
"""Classes with pictures on the page; of more, the first."""
MOST_LISTED = 100
"""Lines of a list; the card has all."""
MOST_PAIRS = 24
"""Near copies shown as pictures."""
UNBALANCED = 10
"""A class with so many times fewer images than the largest is worth a word."""
FEW_ALIKE, MANY_ALIKE = 20, 0.05
"""More near copies than these, in number and share, are in the nature of the images, as of digits or slices."""
TINT = (255, 96, 0)
_COUNTED = {"classification": "image", "detection": "object", "segmentation": "pixel"}
_TILES = ((10, 10), (30, 8), (10**9, 5))  # up to how many classes, how many pictures of each
_SIDES = {"classification": 64, "detection": 112, "segmentation": 96}  # of a picture on the page, in pixels


@dataclass(frozen=True)
class Bar:
    """How much of a class a split has, and how long its bar is, from 0 to 100."""

    count: int
    length: float


@dataclass(frozen=True)
class ClassRow:
    """One class: its name, a bar for each split, and its pictures where there is room for them."""

    name: str
    bars: tuple[Bar, ...]
    samples: EmbeddedImage | None


@dataclass(frozen=True)
class Shown:
    """The first of many lines, and how many there are."""

    rows: Sequence[Any]
    total: int

    @property
    def hidden(self) -> int:
        """Those that are not shown."""
        return self.total - len(self.rows)


def check_page(page: Path) -> None:
    """Check that a page may be written.

    Raises:
        UserError: a file is there that is none of our pages, or none can be written there.
    """
    if page.is_dir():
        raise UserError(f"page={page} is a folder; name a file.")
    check_writable(page, "page")
    check_generated(page, "name another file, or move it")


def write_data_page(folder: Path, page: Path) -> None:
    """Write the page of a prepared data set.

    Raises:
        UserError: the folder is not a whole prepared data set.
    """
    check_page(page)
    write_text(page, render_data_page(PreparedData.open(folder)))


def render_data_page(prepared: PreparedData) -> str:
    """Return the page as HTML."""
    card = prepared.card
    across = sorted(card.near_across, key=lambda pair: -pair.similarity)
    return render(
        "data.html.j2",
        card=card,
        counted=_COUNTED[card.task],
        rows=_rows(prepared),
        cautions=_cautions(card),
        reasons=_reasons(card.rejected),
        rejected=Shown(card.rejected[:MOST_LISTED], len(card.rejected)),
        conflicting=Shown(card.conflicting_duplicates[:MOST_LISTED], len(card.conflicting_duplicates)),
        near=Shown([(pair, _pair(prepared, pair)) for pair in across[:MOST_PAIRS]], len(across)),
        similarity=SIMILARITY,
        size=_size(card),
        bytes_stored=sum((prepared.folder / name).stat().st_size for name in card.files),
    )


def _cautions(card: Card) -> list[str]:
    """Say what a reader of results on these data has to know."""
    found = []
    if card.made:
        found.append("These images are made by a program; none was seen by a camera or a scanner.")
    for split, names in card.empty_classes.items():
        others = " and others" if len(names) > 10 else ""
        found.append(f"The {split} split has nothing of {', '.join(names[:10])}{others}.")
    train = {name: items for name, items in card.counts["train"].classes.items() if items}
    if card.task != "segmentation" and max(train.values()) >= UNBALANCED * min(train.values()):
        most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        found.append(
            f"The classes are unbalanced: the training split has {train[most]:,} times {most} and {train[least]:,} "
            f"times {least}."
        )
    borders = Counter((pair.other_split, pair.split) for pair in card.near_across)
    common = []
    for (earlier, later), pairs in borders.items():
        share = pairs / card.counts[later].images
        images = count(pairs, f"{later} image")
        if pairs > FEW_ALIKE and share > MANY_ALIKE:
            common.append(f"{share:.0%} of the {later} images like one of the {earlier} split")
            continue
        found.append(f"{images} ({share:.1%}) {'looks' if pairs == 1 else 'look'} like one of the {earlier} split.")
    if common:
        found.append(f"Images of this set look alike by nature ({', '.join(common)}): that alone is no sign of a leak.")
    if card.conflicting_duplicates:
        found.append(f"Equal images with different annotations: {count(len(card.conflicting_duplicates), 'pair')}.")
    return found


def _reasons(rejected: Sequence[Rejected]) -> list[tuple[str, int]]:
    """Count what was left out by its reason, numbers aside."""
    return Counter(re.sub(r"\[.*?\]|-?\d[\d,.]*", "…", entry.reason) for entry in rejected).most_common()


def _size(card: Card) -> str:
    height, width = card.image_shape[1:]
    colours = {1: "grey", 3: "RGB"}.get(card.image_shape[0], f"{card.image_shape[0]} channels")
    return f"{width} × {height}, {colours}" if height else f"of many sizes, {colours}"


# ---- classes --------------------------------------------------------------------------------------------------------


def _rows(prepared: PreparedData) -> list[ClassRow]:
    card = prepared.card
    names = list(card.counts["train"].classes)
    first = len(card.classes) - len(names)  # in detection the background is not counted
    most = max(max(counts.classes.values()) for counts in card.counts.values()) or 1
    tiles = next(tiles for limit, tiles in _TILES if len(names) <= limit) if card.task == "classification" else 6
    split = prepared.split("train")
    rows = []
    for number, name in enumerate(names):
        bars = tuple(Bar(c.classes[name], 100 * c.classes[name] / most) for c in card.counts.values())
        samples = _samples(split, number + first, tiles, name) if number < MOST_CLASSES else None
        rows.append(ClassRow(name, bars, samples))
    return rows


def _samples(split: Split, number: int, most: int, name: str) -> EmbeddedImage | None:
    """Show a few training images of a class, evenly spread over them."""
    items = _items_of(split, number)
    if not len(items):
        return None
    chosen = items[np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(np.int64))]
    return _side_by_side(
        [_tile(split, int(item), number) for item in chosen], f"{len(chosen)} training images of {name}"
    )


def _items_of(split: Split, number: int) -> NDArray[np.int64]:
    if split.labels is not None:
        return np.flatnonzero(split.labels == number)
    if split.masks is not None:
        # a look at some images is enough, and reads little of a large set
        some = np.unique(np.linspace(0, len(split) - 1, min(len(split), 200)).round().astype(np.int64))
        return some[[bool((split.masks[item] == number).any()) for item in some]]
    assert split.box_labels is not None
    assert split.box_offsets is not None
    found = np.flatnonzero(split.box_labels == number)
    return np.unique(np.searchsorted(split.box_offsets, found, side="right") - 1)


# ---- pictures -------------------------------------------------------------------------------------------------------


def _tile(split: Split, item: int, number: int | None = None) -> Image.Image:
    """Draw an image, with what belongs to a class marked."""
    pixels = pixels_of(split, item)
    image = as_rgb(pixels)
    if number is not None and split.masks is not None and number > 0:
        area = Image.fromarray((split.masks[item] == number).astype(np.uint8) * 115)  # 45 % of 255
        image.paste(TINT, mask=area)
    side = _SIDES[split.card.task]
    image = scaled(image, side / image.height, max_width=2 * side)
    if number is not None and split.boxes is not None:
        _draw_boxes(image, split, item, number, (pixels.shape[2], pixels.shape[1]))
    return image


def _draw_boxes(picture: Image.Image, split: Split, item: int, number: int, size: tuple[int, int]) -> None:
    assert split.boxes is not None
    assert split.box_labels is not None
    assert split.box_offsets is not None
    span = slice(*split.box_offsets[item : item + 2])
    ratio = np.array([picture.width / size[0], picture.height / size[1]] * 2)
    draw = ImageDraw.Draw(picture)
    for box in split.boxes[span][split.box_labels[span] == number] * ratio:
        draw.rectangle(box.tolist(), outline=TINT, width=2)


def _side_by_side(tiles: Sequence[Image.Image], title: str) -> EmbeddedImage:
    gap = 4
    width = sum(tile.width for tile in tiles) + gap * (len(tiles) - 1)
    strip = Image.new("RGBA", (width, tiles[0].height))
    left = 0
    for tile in tiles:
        strip.paste(tile, (left, 0))
        left += tile.width + gap
    return embedded(strip, title)


def _pair(prepared: PreparedData, pair: NearPair) -> EmbeddedImage:
    tiles = [
        _tile(prepared.split(split), position)
        for split, position in ((pair.split, pair.position), (pair.other_split, pair.other_position))
    ]
    return _side_by_side(tiles, f"{pair.item} of {pair.split} beside {pair.other} of {pair.other_split}")
