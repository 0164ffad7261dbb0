"""`python -m convatlas.predict run=runs/overview/lenet5/seed=0 images/`: what a trained net says of new images.

Writes `predictions.csv`, `predictions.json` and a picture of each image with its prediction to `output_dir`. Every
image is decoded before anything is written.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convatlas.core.cli import read_options, run
from convatlas.core.config import Section
from convatlas.core.errors import UserError
from convatlas.core.files import replace_folder, write_json, write_text
from convatlas.core.imports import quick_imports

if TYPE_CHECKING:
    import torch

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


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


def main() -> None:
    """Predict and write."""
    options = read_options(Options, sys.argv[1:], positional="images")
    if options.output_dir.exists() and any(options.output_dir.iterdir()) and not options.overwrite:
        raise UserError(f"output_dir={options.output_dir} is not empty; choose another, or pass overwrite=true.")
    files = image_files(options.images)
    rows = predict(options, files)
    print(f"{len(rows)} predictions in {options.output_dir}")


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the images among files and folders, sorted within a folder.

    Raises:
        UserError: a path does not exist, or there is no image.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; name image files or folders.")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        files += inside
    if not files:
        raise UserError(
            f"There are no images in {', '.join(map(str, paths))}; known are {', '.join(sorted(SUFFIXES))}."
        )
    return files


def predict(options: Options, files: list[Path]) -> list[dict[str, Any]]:
    """Run the net over the files and write its answers; returns a row of plain values for each image."""
    with quick_imports():
        import torch

        from convatlas.tasks import new_task
        from convatlas.training.trained import load_run

    trained = load_run(options.run, options.checkpoint)
    if trained.config.data.module is not None:
        raise UserError(
            f"{options.run}: how data.module changes images before the net is not known; predict in your code."
        )
    card = trained.prepared().card
    task = new_task(trained.net, trained.config, list(card.classes), seed=0).eval()
    images = {file: image for file in files if (image := _decoded(file, card.image_shape[0], options)) is not None}
    partial = options.output_dir.with_name(f".{options.output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = []
    for number, (file, image) in enumerate(images.items()):
        with torch.inference_mode():
            row, raw = task.predict(image, card)
        rows.append({"file": str(file), **row})
        if options.pictures:
            picture = task.draw(image, raw, row)
            picture.save(partial / f"{number:05d}_{file.stem}.png")
    write_json(partial / "predictions.json", rows)
    write_text(partial / "predictions.csv", _as_csv(rows))
    replace_folder(partial, options.output_dir)
    return rows


def _decoded(file: Path, channels: int, options: Options) -> torch.Tensor | None:
    """Read an image as `(C, H, W)` in [0, 1]; None for a broken one that may be left out."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        if options.skip_broken:
            print(f"{file} is left out: it cannot be read as an image.", file=sys.stderr)
            return None
        raise UserError(f"{file} cannot be read as an image; remove it, or pass skip_broken=true.") from error
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1).copy())


def _as_csv(rows: list[dict[str, Any]]) -> str:
    """Lay rows out as CSV; lists of objects become one cell of JSON."""
    import json

    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
    return text.getvalue()


if __name__ == "__main__":
    run(main)
