"""`python -m convatlas.predict run=runs/overview/lenet5/seed=0 images/`: what a trained net says of new images.

Prints the first answers, and writes `predictions.csv`, `predictions.json` and a picture of each image with its
prediction to `output_dir`, which is whole or not there; `contact_sheet.png` shows the first images as the net sees
them. In segmentation there is also a mask, PNG with class numbers in a palette, of a NIfTI volume as such. Images,
DICOM files and NIfTI volumes are read as the preparation read those of the training; each slice of a volume is a row.
Folders may be of any size: images go through the net in batches, on the device of the training.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, Literal

from convatlas.core.answers import Answering, answering, as_table
from convatlas.core.cli import read_options, run
from convatlas.core.config import Positive
from convatlas.core.errors import UserError
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from convatlas.data.card import Card
    from convatlas.data.squares import Geometry
    from convatlas.tasks.base import Task


SHEET = "contact_sheet.png"
SHOWN = 10
"""Answers that are printed."""
ON_SHEET = 64
"""Images of the contact sheet."""


class Options(Answering):
    """What the command line may say."""

    run: Path
    images: list[Path]
    checkpoint: Path | None = None
    output_dir: Path | None = None
    """null takes predictions/, or the first of predictions-2/, predictions-3/ ... that is not there."""
    pictures: bool = True
    """Draw each image with its answer, and the contact sheet."""
    batch_size: Positive = 16
    """Images that the net answers at once, and that are in memory."""
    accelerator: Literal["cpu", "gpu", "auto"] | None = None
    """null takes that of the training."""
    skip_broken: bool = False
    """Leave out files that are no images, instead of stopping."""
    overwrite: bool = False
    """Replace what an earlier prediction wrote to `output_dir`."""


def main() -> None:
    """Predict, write, and print the first answers."""
    options = read_options(Options, sys.argv[1:], positional="images")
    folder = options.output_dir or free_folder(Path("predictions"))
    check_replaceable(folder, "predict", "output_dir")
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise UserError(f"output_dir={folder} is not empty; choose another, or pass overwrite=true.")
    with answering(options) as answer:
        answers = predict(options, folder, image_files(options.images))
        found = {"output_dir": folder.as_posix(), "count": answers.count, "first": answers.first}
        answer(as_text(answers, folder), found)


def free_folder(wanted: Path) -> Path:
    """Return `predictions`, or the first of `predictions-2`, `predictions-3` ... that is not there."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if not folder.exists())


def as_text(answers: Answers, folder: Path) -> str:
    """Lay the first answers out, with where all are."""
    left = answers.count - len(answers.first)
    rows = [[named(row), words_of(row)] for row in answers.first]
    table = as_table(["image", "answer"], rows, words=2)
    more = f"\nand {left:,} more" if left else ""
    sheet = f"; {folder / SHEET} shows them as the net sees them" if answers.pictures else ""
    return f"{table}{more}\n\n{answers.count:,} prediction{'' if answers.count == 1 else 's'} in {folder}{sheet}."


def named(row: Mapping[str, Any]) -> str:
    """Return the file of a row, with the slice of a volume."""
    return f"{row['file']}, slice {row['slice']}" if "slice" in row else str(row["file"])


def words_of(row: Mapping[str, Any]) -> str:
    """Say in a few words what the net says of an image: a class, what it found, or how much each class covers."""
    if "prediction" in row:
        second = row["top"][1:2]
        return f"{row['prediction']}  {row['confidence']:.1%}" + "".join(
            f"   (then {each['class']}  {each['probability']:.1%})" for each in second
        )
    if "objects" in row:
        found = Counter(each["class"] for each in row["objects"])
        return ", ".join(f"{number} {name}" for name, number in found.most_common()) or "nothing"
    total = sum(row["pixels"].values())
    return ", ".join(f"{name} {pixels / total:.1%}" for name, pixels in row["pixels"].items())


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the images among files and folders, sorted within a folder; other files of a folder are listed.

    Raises:
        UserError: a path does not exist, or there is no image.
    """
    from convatlas.data import medical
    from convatlas.data.image_files import SUFFIXES, pictures_below

    known = (*sorted(SUFFIXES), *medical.SUFFIXES)
    files: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name image files or folders.")
        if not path.is_dir():
            if not path.is_file():
                raise UserError(f"{path} is no file of an image; name image files or folders.")
            files.append(path)
            continue
        pictures, rest = pictures_below(path, known)
        files += pictures
        others += rest
    if not files:
        raise UserError(f"There are no images in {', '.join(map(str, paths))}; known are {', '.join(known)}.")
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        print(f"Left out, by their endings: {', '.join(map(str, others[:3]))}{more}.", file=sys.stderr)
    return files


def predict(options: Options, folder: Path, files: list[Path]) -> Answers:
    """Run the net over the files in batches, write its answers into a folder, and return what was written.

    Images are decoded ahead in threads; none stays in memory after its answer is written.

    Raises:
        UserError: a file cannot be read as an image, and is not to be left out.
    """
    with quick_imports():
        import torch
        from tqdm import tqdm

        from convatlas.core.processes import uses_gpu
        from convatlas.training.trained import load_run

    trained = load_run(options.run, options.checkpoint)
    if trained.config.data.module is not None:
        raise UserError(
            f"{options.run}: how data.module changes images before the net is not known; predict in your code."
        )
    gpu = uses_gpu(options.accelerator or trained.config.trainer.accelerator)
    if options.accelerator == "gpu" and not gpu:
        raise UserError("accelerator=gpu: torch sees no GPU here; leave it out, or take accelerator=cpu.")
    task, card = trained.task().to("cuda" if gpu else "cpu"), trained.card
    with written_folder(folder, "predict", "output_dir") as partial:
        with (
            Answers(partial, task, pictures=options.pictures) as answers,
            tqdm(total=len(files), unit=" files", disable=None, delay=1) as bar,
        ):
            for batch in in_batches(pictures_in(files, task, card, options), options.batch_size):
                with torch.inference_mode():
                    images = torch.cat([picture.fitted for picture in batch])
                    found = task.answers(images.to(task.device), card)
                for picture, answer in zip(batch, found, strict=True):
                    answers.add(picture, answer)
                    bar.update(picture.last)
        if not answers.count:
            raise UserError("None of the files can be read as an image; name others.")
        if unlike := answers.unlike(card):
            print(unlike, file=sys.stderr)
    return answers


@dataclass(frozen=True)
class Picture:
    """An image, or a slice of a volume, on its way through the net.

    Attributes:
        file: where it was read.
        slice: its number in a volume; None for an image.
        last: whether nothing of its file follows.
        pixels: `(C, H, W)` as decoded.
        fitted: `(1, C, S, S)`, what the net gets.
        geometry: where the pixels went.
    """

    file: Path
    slice: int | None
    last: bool
    pixels: NDArray[np.uint8]
    fitted: Tensor
    geometry: Geometry


def pictures_in(files: Sequence[Path], task: Task, card: Card, options: Options) -> Iterator[Picture]:
    """Read files in the order given, as many ahead as make a batch.

    Raises:
        UserError: one cannot be read as an image, and is not to be left out.
    """
    from convatlas.data.archives import printable
    from convatlas.data.decoding import BadImageError

    with ThreadPoolExecutor(min(options.batch_size, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Path, Future[list[Picture]]]] = deque()
        left = iter(files)
        while True:
            for file in islice(left, options.batch_size - len(waiting)):
                waiting.append((file, pool.submit(_read, file, task, card)))
            if not waiting:
                return
            file, future = waiting.popleft()
            try:
                yield from future.result()
            except BadImageError as error:
                if not options.skip_broken:
                    pool.shutdown(cancel_futures=True)
                    raise UserError(f"{printable(file)}: {error}. Remove it, or pass skip_broken=true.") from error
                print(f"{printable(file)} is left out: {error}.", file=sys.stderr)


def _read(file: Path, task: Task, card: Card) -> list[Picture]:
    from convatlas.data.medical import decode_images, is_volume
    from convatlas.tasks.predicting import fitted_image

    images = [*decode_images(file, card)]
    volume = is_volume(file)
    pictures = []
    for number, image in enumerate(images):
        fitted, geometry = fitted_image(image.pixels, task.config, card, image.spacing)
        last = number == len(images) - 1
        pictures.append(Picture(file, number if volume else None, last, image.pixels, fitted, geometry))
    return pictures


def in_batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    """Yield so many at a time, fewer at the end."""
    while batch := [*islice(pictures, size)]:
        yield batch


class Answers:
    """Writes answers as they come: a row each to `predictions.json` and `predictions.csv`, pictures and masks.

    Args:
        folder: to write to.
        task: that reads and draws answers.
        pictures: whether each image is drawn with its answer.

    Attributes:
        count: how many there are.
        first: the first `SHOWN` rows.
    """

    def __init__(self, folder: Path, task: Task, *, pictures: bool) -> None:
        self.folder, self.task, self.pictures = folder, task, pictures
        self.count = 0
        self.first: list[dict[str, Any]] = []
        self._brightness = 0.0
        self._sheet: list[tuple[NDArray[np.uint8], str]] = []
        self._json = (folder / "predictions.json").open("w", encoding="utf-8")
        self._csv = (folder / "predictions.csv").open("w", encoding="utf-8", newline="")
        self._writer: csv.DictWriter[str] | None = None
        self._masks: list[NDArray[np.uint8]] = []

    def __enter__(self) -> Answers:
        self._json.write("[")
        return self

    def __exit__(self, *_: object) -> None:
        self._json.write("\n]\n")
        self._json.close()
        self._csv.close()
        if self._sheet:
            contact_sheet(self._sheet).save(self.folder / SHEET)

    def unlike(self, card: Card) -> str:
        """Say that the images are far brighter or darker than those of the training; nothing where they are not."""
        found, usual = self._brightness / self.count, sum(card.mean) / len(card.mean)
        if abs(found - usual) <= sum(card.std) / len(card.std):
            return ""
        brighter = "brighter" if found > usual else "darker"
        return (
            f"These images are much {brighter} than those of the training (mean {found:.2f}, there {usual:.2f}, of "
            "0 for black to 1 for white); look at the contact sheet before you trust the answers."
        )

    def add(self, picture: Picture, answer: Any) -> None:
        """Write what the net says of one picture."""
        from convatlas.data.archives import printable
        from convatlas.data.medical import write_masks
        from convatlas.tasks.predicting import in_palette

        size = (picture.pixels.shape[1], picture.pixels.shape[2])
        row, drawn = self.task.read(answer, picture.geometry, size)
        volume = picture.slice is not None
        self._write({"file": printable(picture.file), "slice": picture.slice, **row})
        self._brightness += float(picture.fitted.mean())
        if self.pictures and len(self._sheet) < ON_SHEET:
            seen = (255 * picture.fitted[0, :3]).round().clamp(0, 255).byte().cpu().numpy()
            self._sheet.append((seen, words_of(row).partition("   ")[0]))
        stem = printable(picture.file.name.partition(".nii")[0] if volume else picture.file.stem)
        name = stem.encode()[:200].decode(errors="ignore")  # names end at 255 bytes
        if self.pictures:
            self.task.draw(picture.pixels, drawn, row).save(self.folder / f"{self.count:05d}_{name}.png")
        mask = self.task.mask(drawn)
        if mask is not None and not volume:
            in_palette(mask).save(self.folder / f"{self.count:05d}_{name}_mask.png")
        elif mask is not None:
            self._masks.append(mask)
        if self._masks and picture.last:
            first = self.count + 1 - len(self._masks)
            write_masks(self.folder / f"{first:05d}_{name}_mask.nii.gz", self._masks, picture.file)
            self._masks = []
        self.count += 1

    def _write(self, row: dict[str, Any]) -> None:
        """Write a row; in JSON only slices have a key `slice`, and in CSV lists of objects are one cell of JSON."""
        plain = {key: value for key, value in row.items() if key != "slice" or value is not None}
        if len(self.first) < SHOWN:
            self.first.append(plain)
        text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False)
        self._json.write(("," if self.count else "") + "\n" + indent(text, "  "))
        if self._writer is None:
            self._writer = csv.DictWriter(self._csv, list(row), lineterminator="\n")
            self._writer.writeheader()
        cells = {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()}
        self._writer.writerow(cells)


def contact_sheet(images: Sequence[tuple[NDArray[np.uint8], str]]) -> Image:
    """Draw images `(C, H, W)` in rows, what is said of each below it."""
    from PIL import Image, ImageDraw, ImageFont

    side, font = 128, ImageFont.load_default(13)
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * (side + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, words) in enumerate(images):
        left, top = number % columns * (side + 8) + 4, number // columns * (side + 28) + 4
        shown = Image.fromarray(pixels[0] if len(pixels) < 3 else pixels.transpose(1, 2, 0))
        factor = side / max(shown.size)
        size = (max(1, round(factor * shown.width)), max(1, round(factor * shown.height)))
        smooth = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.HAMMING
        sheet.paste(shown.resize(size, smooth), (left, top))
        draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline="#b9bbb8")
        fitting = next(n for n in range(len(words), -1, -1) if draw.textlength(words[:n], font) <= side)
        draw.text((left, top + side + 4), words[:fitting], fill="black", font=font)
    return sheet


if __name__ == "__main__":
    run(main)
