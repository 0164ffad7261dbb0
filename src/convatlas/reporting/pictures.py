"""The runs' pictures inside the page: scaled down, as WebP, and no more bytes of them than a page can bear."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from convatlas.core.errors import UserError
from convatlas.reporting.results import RUN_AGAIN, Group
from convatlas.reporting.variants import SeedRun, Variant
from convatlas.reporting.wording import spoken

TOTAL_BYTES = 1_800_000
"""All pictures of a page together, as they stand in it."""

# Many pictures, small pictures: (up to how many, longest side in pixels, quality of WebP).
_SIZES = ((40, 640, 75), (100, 520, 60), (200, 400, 45), (10**9, 300, 40))


@dataclass(frozen=True)
class Picture:
    """One picture of a run.

    Attributes:
        title: what it shows, from its file name.
        file: its path below the runs' folder, for whoever wants it in full.
        address: the picture itself as a `data:` address; empty where the page has no room for it.
        width, height: in pixels.
    """

    title: str
    file: str
    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Plate:
    """The pictures of one variant, from its run with the median score."""

    variant: Variant
    run: SeedRun
    pictures: tuple[Picture, ...]


def plates(groups: Sequence[Group], runs: Path) -> list[list[Plate]]:
    """Take the pictures of each variant's median run, group by group, until `TOTAL_BYTES` are used up.

    Raises:
        UserError: a picture is not readable.
    """
    chosen = [_median_runs(group) for group in groups]
    files = {run.folder: run.figures() for pairs in chosen for _, run in pairs}
    many = sum(map(len, files.values()))
    side, quality = next((side, quality) for limit, side, quality in _SIZES if many <= limit)
    room = _Room(TOTAL_BYTES)

    def plate(variant: Variant, run: SeedRun) -> Plate:
        return Plate(variant, run, tuple(_embedded(file, runs, side, quality, room) for file in files[run.folder]))

    return [[plate(variant, run) for variant, run in pairs if files[run.folder]] for pairs in chosen]


def _median_runs(group: Group) -> list[tuple[Variant, SeedRun]]:
    found = ((variant, variant.median_run(group.score)) for variant in group.variants)
    return [(variant, run) for variant, run in found if run is not None]


@dataclass
class _Room:
    """The bytes that are left for pictures; once one does not fit, no later one does."""

    left: int

    def takes(self, address: str) -> bool:
        self.left -= len(address)
        return self.left >= 0


def _embedded(file: Path, runs: Path, side: int, quality: int, room: _Room) -> Picture:
    title, where = spoken(file.stem), file.relative_to(runs).as_posix()
    if room.left <= 0:
        return Picture(title, where, "", 0, 0)
    try:
        with Image.open(file) as opened:
            image = _on_white(opened)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is not a readable picture; {RUN_AGAIN}") from error
    image.thumbnail((side, side), Image.Resampling.HAMMING)  # as good as bicubic when shrinking, at half the time
    encoded = io.BytesIO()
    image.save(encoded, "webp", quality=quality, method=2)
    address = "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
    return Picture(title, where, address if room.takes(address) else "", image.width, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    """Put a picture that lets something through on white paper."""
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert("RGB")
    paper = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(paper, rgba).convert("RGB")
