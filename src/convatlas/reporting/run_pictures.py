"""The runs' pictures inside the page: scaled down, and no more bytes of them than a page can bear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from convatlas.core.errors import UserError
from convatlas.core.metrics import as_words
from convatlas.core.record import REMEDY
from convatlas.reporting.images import EmbeddedImage, embedded
from convatlas.reporting.study import Group, SeedRun, Variant
from convatlas.reporting.wording import metric_text

TOTAL_BYTES = 1_800_000
"""All pictures of a page together, as they stand in it."""

# Many pictures, small pictures: (up to how many, longest side in pixels, quality of WebP).
_SIZES = ((40, 640, 75), (100, 520, 60), (200, 400, 45), (10**9, 300, 40))


@dataclass(frozen=True)
class RunPictures:
    """The pictures of one variant, from its run with the median score; `caption` names seed and score.

    Each has its path below the runs' folder, and None where the page has no room for it.
    """

    variant: Variant
    caption: str
    pictures: tuple[tuple[str, str, EmbeddedImage | None], ...]


def run_pictures(groups: Sequence[Group], runs: Path) -> list[list[RunPictures]]:
    """Take the pictures of each variant's median run, group by group, until `TOTAL_BYTES` are used up.

    Raises:
        UserError: a picture is not readable.
    """
    chosen = [[(v, run) for v in group.variants if (run := v.median_run(group.score))] for group in groups]
    files = {run.folder: sorted((run.folder / "figures").glob("*.png")) for pairs in chosen for _, run in pairs}
    many = sum(map(len, files.values()))
    side, quality = next((side, quality) for limit, side, quality in _SIZES if many <= limit)
    left = TOTAL_BYTES

    def picture(file: Path, what: str) -> tuple[str, str, EmbeddedImage | None]:
        nonlocal left
        title = as_words(file.stem)
        image = _read(file, side, quality, f"{title.capitalize()} of {what}") if left > 0 else None
        left -= len(image.uri) if image else 0  # once one does not fit, no later one does
        return title, file.relative_to(runs).as_posix(), image if left >= 0 else None

    def of_run(group: Group, variant: Variant, run: SeedRun) -> RunPictures:
        score = f"{metric_text(group.metric, run.test(group.score))}{group.metric.unit}"
        what = f"{variant.title} on the test split of {group.data}, seed {run.seed}"
        pictures = tuple(picture(file, what) for file in files[run.folder])
        return RunPictures(variant, f"seed {run.seed}, {score}", pictures)

    return [
        [of_run(group, variant, run) for variant, run in pairs if files[run.folder]]
        for group, pairs in zip(groups, chosen, strict=True)
    ]


def _read(file: Path, side: int, quality: int, title: str) -> EmbeddedImage:
    try:
        with Image.open(file) as opened:
            image = _on_white(opened)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} is not a readable picture; {REMEDY}") from error
    image.thumbnail((side, side), Image.Resampling.HAMMING)  # as good as bicubic when shrinking, at half the time
    return embedded(image, title, quality)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(paper, rgba).convert("RGB")
