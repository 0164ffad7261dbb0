"""Picture files of every kind, made for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_sets import raw_classification

from convatlas.core.config import DataConfig, SplitConfig
from convatlas.data.image_files import ImageFiles
from convatlas.data.raw import RawDataset


def photograph(seed: int, height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    """Make smooth colours, so that JPEG keeps them nearly: `(H, W, C)` uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return pixels if channels == 3 else pixels[..., :1]


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a picture file."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def files_in(folder: Path, contents: dict[str, bytes]) -> ImageFiles:
    """Write files, and return them as images in the order of the dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return ImageFiles([folder / name for name in contents])


def good_files(count: int = 30) -> dict[str, bytes]:
    """Return pictures of different sizes, JPEG and PNG in turn."""
    names = [f"{number:03d}.{'png' if number % 2 else 'jpg'}" for number in range(count)]
    return {
        name: encoded(photograph(number, 20 + number % 7, 30 - number % 5), "PNG" if number % 2 else "JPEG")
        for number, name in enumerate(names)
    }


def raw_files(folder: Path, contents: dict[str, bytes] | None = None, **other: Any) -> RawDataset:
    """Make a classification data set of files; class numbers go round."""
    contents = good_files() if contents is None else contents
    return raw_classification(len(contents), images=files_in(folder, contents), names=list(contents), **other)


def files_config(folder: Path, **other: Any) -> DataConfig:
    arguments: dict[str, Any] = {
        "name": "pictures",
        "task": "classification",
        "source": {"_target_": "small_sets.not_called"},
        "root": folder / "raw",
        "prepared": folder / "prepared" / "pictures",
        "image_size": 16,
        "in_channels": 3,
        "num_classes": 3,
        "split": SplitConfig(validation=0.25, test=0.2, seed=0),
        "storage": "shards",
    }
    return DataConfig(**(arguments | other))
