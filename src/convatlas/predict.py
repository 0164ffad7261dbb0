"""`python -m convatlas.predict run=runs/overview/lenet5/seed=0 images/`: what a trained net says of new images.

Writes `predictions.csv`, `predictions.json` and a picture of each image with its prediction to `output_dir`, which is
whole or not there; in segmentation also a mask, PNG with class numbers in a palette, of a NIfTI volume as such. Images,
DICOM files and NIfTI volumes are read as the preparation read those of the training; each slice of a volume is a row.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.core.files import write_json, write_text
from convatlas.core.folders import check_replaceable, written_folder
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    from convatlas.data.card import Card
    from convatlas.tasks.base import Task


class Options(Section):
    """What the command line may say."""

    run: Path
    images: list[Path]
    checkpoint: Path | None = None
    output_dir: Path = Path("predictions")
    pictures: bool = True
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
    rows = predict(options, files)
    print(f"{len(rows)} predictions in {options.output_dir}")


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


def predict(options: Options, files: list[Path]) -> list[dict[str, Any]]:
    """Run the net over the files, one after the other, and write its answers; returns a row for each image or slice.

    Raises:
        UserError: a file cannot be read as an image, and is not to be left out.
    """
    from convatlas.data.archives import printable
    from convatlas.data.decoding import BadImageError

    with quick_imports():
        from convatlas.training.trained import load_run

    trained = load_run(options.run, options.checkpoint)
    if trained.config.data.module is not None:
        raise UserError(
            f"{options.run}: how data.module changes images before the net is not known; predict in your code."
        )
    task, card = trained.task(), trained.card
    rows: list[dict[str, Any]] = []
    with written_folder(options.output_dir, "predict", "output_dir") as partial:
        for file in files:
            try:
                rows += _answers(task, card, file, partial, len(rows), pictures=options.pictures)
            except BadImageError as error:
                if not options.skip_broken:
                    raise UserError(f"{printable(file)}: {error}. Remove it, or pass skip_broken=true.") from error
                print(f"{printable(file)} is left out: {error}.", file=sys.stderr)
        if not rows:
            raise UserError("None of the files can be read as an image; name others.")
        write_json(partial / "predictions.json", rows)
        write_text(partial / "predictions.csv", _as_csv(rows))
    return rows


def _answers(task: Task, card: Card, file: Path, folder: Path, first: int, *, pictures: bool) -> list[dict[str, Any]]:
    """Return the net's answers for the images in one file, after writing what they look like; `first` numbers them."""
    import torch

    from convatlas.data.archives import printable
    from convatlas.data.medical import decode_images, is_volume, write_masks
    from convatlas.tasks.predicting import in_palette

    rows, masks = [], []
    stem = printable(file.name.partition(".nii")[0] if is_volume(file) else file.stem)
    name = stem.encode()[:200].decode(errors="ignore")  # names end at 255 bytes
    images = decode_images(file, card)
    for number, image in enumerate(images):
        with torch.inference_mode():
            row, answer = task.predict(image.pixels, card, image.spacing)
        rows.append({"file": printable(file), **({"slice": number} if is_volume(file) else {}), **row})
        if pictures:
            task.draw(image.pixels, answer, row).save(folder / f"{first + number:05d}_{name}.png")
        mask = task.mask(answer)
        if mask is not None and not is_volume(file):
            in_palette(mask).save(folder / f"{first + number:05d}_{name}_mask.png")
        elif mask is not None:
            masks.append(mask)
    if masks:
        write_masks(folder / f"{first:05d}_{name}_mask.nii.gz", masks, file)
    return rows


def _as_csv(rows: list[dict[str, Any]]) -> str:
    """Lay rows out as CSV; lists of objects become one cell of JSON."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return text.getvalue()


if __name__ == "__main__":
    run(main)
