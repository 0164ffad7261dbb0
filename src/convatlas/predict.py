"""`python -m convatlas.predict run=runs/overview/lenet5/seed=0 images/`: what a trained net says of new images.

Writes `predictions.csv`, `predictions.json` and a picture of each image with its prediction to `output_dir`, which is
whole or not there; in segmentation also a mask, PNG with class numbers in a palette, of a NIfTI volume as such. Images,
DICOM files and NIfTI volumes are read as the preparation read those of the training; each slice of a volume is a row.
Folders may be of any size: images go through the net in batches, on the device of the training.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, Literal

from convatlas.core.cli import read_options, run
from convatlas.core.config import Positive, Section
from convatlas.core.errors import UserError
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from convatlas.data.card import Card
    from convatlas.data.decoding import Geometry
    from convatlas.tasks.base import Task


class Options(Section):
    """What the command line may say."""

    run: Path
    images: list[Path]
    checkpoint: Path | None = None
    output_dir: Path = Path("predictions")
    pictures: bool = True
    batch_size: Positive = 16
    """Images that the net answers at once, and that are in memory."""
    accelerator: Literal["cpu", "gpu", "auto"] | None = None
    """null takes that of the training."""
    skip_broken: bool = False
    """Leave out files that are no images, instead of stopping."""
    overwrite: bool = False
    """Replace what an earlier prediction wrote to `output_dir`."""


def main() -> None:
    """Predict and write."""
    options = read_options(Options, sys.argv[1:], positional="images")
    check_replaceable(options.output_dir, "predict", "output_dir")
    if options.output_dir.exists() and any(options.output_dir.iterdir()) and not options.overwrite:
        raise UserError(f"output_dir={options.output_dir} is not empty; choose another, or pass overwrite=true.")
    files = image_files(options.images)
    count = predict(options, files)
    print(f"{count} predictions in {options.output_dir}")


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


def predict(options: Options, files: list[Path]) -> int:
    """Run the net over the files in batches and write its answers; returns how many images or slices there were.

    Images are decoded ahead in threads; none stays in memory after its answer is written.

    Raises:
        UserError: a file cannot be read as an image, and is not to be left out.
    """
    with quick_imports():
        import torch

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
    with written_folder(options.output_dir, "predict", "output_dir") as partial:
        with Answers(partial, task, pictures=options.pictures) as answers:
            for batch in in_batches(pictures_in(files, task, card, options), options.batch_size):
                with torch.inference_mode():
                    images = torch.cat([picture.fitted for picture in batch])
                    found = task.answers(images.to(task.device), card)
                for picture, answer in zip(batch, found, strict=True):
                    answers.add(picture, answer)
        if not answers.count:
            raise UserError("None of the files can be read as an image; name others.")
    return answers.count


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
    """

    def __init__(self, folder: Path, task: Task, *, pictures: bool) -> None:
        self.folder, self.task, self.pictures = folder, task, pictures
        self.count = 0
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

    def add(self, picture: Picture, answer: Any) -> None:
        """Write what the net says of one picture."""
        from convatlas.data.archives import printable
        from convatlas.data.medical import write_masks
        from convatlas.tasks.predicting import in_palette

        size = (picture.pixels.shape[1], picture.pixels.shape[2])
        row, drawn = self.task.read(answer, picture.geometry, size)
        volume = picture.slice is not None
        self._write({"file": printable(picture.file), "slice": picture.slice, **row})
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
        text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False)
        self._json.write(("," if self.count else "") + "\n" + indent(text, "  "))
        if self._writer is None:
            self._writer = csv.DictWriter(self._csv, list(row), lineterminator="\n")
            self._writer.writeheader()
        cells = {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()}
        self._writer.writerow(cells)


if __name__ == "__main__":
    run(main)
