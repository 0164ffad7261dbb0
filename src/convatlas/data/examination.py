"""What is known of every image after its check: can it be used, how large is it, which others equal it.

Images in files are decoded here for the first time, by as many threads as there are CPUs: Pillow and hashlib let
other threads run meanwhile. What was found is put down every few thousand images, so that a preparation that was killed
goes on where it was; it is used again only for files of the same names, sizes and times.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from convatlas.core.files import atomic_write
from convatlas.data.decoding import BadImageError, Decoded, decode, one_colour
from convatlas.data.duplicates import digest, first_of, thumbnails
from convatlas.data.image_files import ImageFiles
from convatlas.data.spool import Items, chunks

__all__ = ["Examination", "examine", "in_parallel"]

FILES_AT_ONCE = 4096
"""Images in files between two savings of what was found."""
ARRAYS_AT_ONCE = 512

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found, image by image.

    Attributes:
        copies: `(N,)` for each image the first that is equal to it in every pixel.
        thumbnails: `(N, 256)`, see `convatlas.data.duplicates`.
        sizes: `(N, 2)` height and width in pixels.
        moments: `(N, 2, C)` means of each channel's pixels in [0, 1] and of their squares.
        plain: `(N,)` whether the file can be stored as it is, see `convatlas.data.decoding.Decoded`.
        complaints: by position, why an image cannot be used.
        changed: by position, what decoding converts, for example "mode CMYK".
    """

    copies: Items
    thumbnails: NDArray[np.float16]
    sizes: Items
    moments: NDArray[np.float64]
    plain: NDArray[np.bool_]
    complaints: dict[int, str]
    changed: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Stretch:
    """What was found of some images that follow each other; plain arrays, to be saved."""

    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.float16]
    sizes: Items
    moments: NDArray[np.float64]
    plain: NDArray[np.bool_]
    complaints: NDArray[np.str_]
    changed: NDArray[np.str_]


def examine(images: NDArray[np.uint8] | ImageFiles, channels: int = 3, saved: Path | None = None) -> Examination:
    """Look at every image, with a progress bar on a terminal if they are in files.

    Args:
        images: `(N, C, H, W)`, or files.
        channels: that images in files are decoded to, 1 or 3.
        saved: folder for what was found so far; the caller removes it. None saves nothing.
    """
    stretches = list(_of_files(images, channels, saved) if isinstance(images, ImageFiles) else _of_array(images))
    joined = {field.name: np.concatenate([getattr(s, field.name) for s in stretches]) for field in fields(_Stretch)}
    return Examination(
        copies=first_of([bytes(row) for row in joined["digests"]]),
        thumbnails=joined["thumbnails"],
        sizes=joined["sizes"],
        moments=joined["moments"],
        plain=joined["plain"],
        complaints=_texts(joined["complaints"]),
        changed=_texts(joined["changed"]),
    )


def _texts(column: NDArray[np.str_]) -> dict[int, str]:
    return {item: str(text) for item, text in enumerate(column) if text}


def in_parallel(work: Callable[[int], T], items: Items, what: str) -> Iterator[T]:
    """Do some work for each item in several threads and yield the results in order, with a progress bar.

    No more results are waiting than a few hundred, so that they need not all fit into memory.
    """
    from tqdm import tqdm

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=what, unit=" images", disable=None) as bar:
        for first in range(0, len(items), 256):
            for result in pool.map(work, items[first : first + 256].tolist()):
                yield result
                bar.update()


# ---- arrays ---------------------------------------------------------------------------------------------------------


def _of_array(images: NDArray[np.uint8]) -> Iterator[_Stretch]:
    for some in chunks(images, ARRAYS_AT_ONCE):
        count, channels = some.shape[:2]
        yield _Stretch(
            digests=np.stack([np.frombuffer(digest(image), dtype=np.uint8) for image in some]),
            thumbnails=thumbnails(some),
            sizes=np.full((count, 2), some.shape[2:], dtype=np.int64),
            moments=np.zeros((count, 2, channels)),  # the whole array is counted exactly instead
            plain=np.zeros(count, dtype=np.bool_),
            complaints=np.array([one_colour(image) for image in some], dtype=np.str_),
            changed=np.zeros(count, dtype=np.str_),
        )


# ---- files ----------------------------------------------------------------------------------------------------------


def _of_files(images: ImageFiles, channels: int, saved: Path | None) -> Iterator[_Stretch]:
    positions = np.arange(len(images), dtype=np.int64)
    known: dict[int, _Stretch] = {}
    if saved is not None:
        for first in range(0, len(images), FILES_AT_ONCE):
            stretch = _load(saved / f"{_identity(images, first, channels)}.npz")
            if stretch is not None:
                known[first] = stretch
    unknown = [p for p in positions.tolist() if p // FILES_AT_ONCE * FILES_AT_ONCE not in known]
    looks = in_parallel(lambda item: _look(images, item, channels), np.array(unknown, dtype=np.int64), "decoding")
    for first in range(0, len(images), FILES_AT_ONCE):
        stretch = known.get(first)
        if stretch is None:
            count = min(FILES_AT_ONCE, len(images) - first)
            stretch = _joined([next(looks) for _ in range(count)])
            if saved is not None and len(images) > FILES_AT_ONCE:
                _save(saved / f"{_identity(images, first, channels)}.npz", stretch)
        yield stretch


def _look(images: ImageFiles, item: int, channels: int) -> dict[str, Any]:
    """Return the values of one image, under the names of `_Stretch`."""
    try:
        found = decode(images.read(item), channels)
    except OSError as error:
        return _unusable(item, channels, f"the file cannot be read: {error.strerror or error}")
    except BadImageError as error:
        return _unusable(item, channels, str(error))
    return _of_decoded(found)


def _of_decoded(found: Decoded) -> dict[str, Any]:
    pixels = found.pixels
    values = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    return {
        "digests": np.frombuffer(digest(pixels), dtype=np.uint8),
        "thumbnails": thumbnails(pixels[None])[0],
        "sizes": np.array(found.size, dtype=np.int64),
        "moments": np.stack([values.mean(axis=1, dtype=np.float64), (values**2).mean(axis=1, dtype=np.float64)]),
        "plain": found.plain,
        "complaints": one_colour(pixels),
        "changed": ", ".join(found.changed),
    }


def _unusable(item: int, channels: int, reason: str) -> dict[str, Any]:
    return {
        "digests": np.frombuffer(item.to_bytes(16, "big"), dtype=np.uint8),  # a copy of nothing
        "thumbnails": np.zeros(256, dtype=np.float16),
        "sizes": np.zeros(2, dtype=np.int64),
        "moments": np.zeros((2, channels)),
        "plain": False,
        "complaints": reason,
        "changed": "",
    }


def _joined(looks: list[dict[str, Any]]) -> _Stretch:
    return _Stretch(**{field.name: np.stack([look[field.name] for look in looks]) for field in fields(_Stretch)})


# ---- what was found before a preparation was killed -----------------------------------------------------------------


def _identity(images: ImageFiles, first: int, channels: int) -> str:
    """Return a name that files of other names, sizes or times would not have."""
    last = min(first + FILES_AT_ONCE, len(images))
    lines = [f"2 {channels}", *(images.state(item) for item in range(first, last))]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:32]


def _load(path: Path) -> _Stretch | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _Stretch(**arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, EOFError):  # of another version; it is made again
        return None


def _save(path: Path, stretch: _Stretch) -> None:
    with atomic_write(path) as file:
        np.savez(file, **{field.name: getattr(stretch, field.name) for field in fields(_Stretch)})


def forget(saved: Path) -> None:
    """Remove what was saved; the preparation is done."""
    shutil.rmtree(saved, ignore_errors=True)
