"""Image files: which files of a folder are taken for images, and images that are left in their files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.data.archives import file_bytes, reading

__all__ = [
    "SUFFIXES",
    "ImageFiles",
    "LibraryImages",
    "folders_in",
    "is_clutter",
    "named_pattern",
    "pictures_below",
    "split_of_folder",
]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
"""What operating systems and network drives leave behind; it is passed over without a word, as are names
that start with a dot."""
_SPLIT = re.compile(
    r"(?:(?:data|images?|img|imgs|seg|set)[ _-]?)?(train|val|valid|validation|dev|test)(?:ing)?"
    r"(?:[ _-]?(?:data|images?|img|imgs|set|split|folder|\d{4}))*",
    re.IGNORECASE,
)


class ImageFiles:
    """Images in files that stay where they are; nothing is read or decoded before it is asked for.

    What the files hold need not be right: the verification decodes each of them and lists in the data card those that
    are no images. Data of this kind are prepared with `data.storage=shards`, or, resized, with `data.storage=arrays`.

    Args:
        paths: one file an image, JPEG, PNG or another format that Pillow reads, of any size.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, items: NDArray[np.int64]) -> ImageFiles:
        """Return the images at these positions alone, in this order."""
        return ImageFiles([self.paths[item] for item in items])

    def read(self, item: int) -> bytes:
        """Return the bytes of an image's file.

        Raises:
            OSError: it cannot be read.
        """
        return file_bytes(self.paths[item])

    def state(self, item: int) -> str:
        """Return a text that another content of the file would not have: its name, size and time."""
        try:
            status = self.paths[item].stat()
        except OSError:
            return f"{self.paths[item]} missing"
        return f"{self.paths[item]} {status.st_size} {status.st_mtime_ns}"


class LibraryImages(ImageFiles):
    """Images that another library reads from its own files, one by one.

    Args:
        names: one an image, for messages.
        read_one: gives the bytes of a JPEG, PNG or the like by the position among `names`; raises OSError or ValueError
            where it cannot.
        version: a text that another content would not have.
        items: `(n,)` positions of the images that are taken; None takes all.
    """

    def __init__(
        self,
        names: Sequence[str],
        read_one: Callable[[int], bytes],
        version: str,
        items: NDArray[np.int64] | None = None,
    ) -> None:
        self.items = np.arange(len(names)) if items is None else items
        super().__init__([Path(names[item]) for item in self.items.tolist()])
        self._names, self._read_one, self._version = names, read_one, version

    def take(self, items: NDArray[np.int64]) -> LibraryImages:
        """Return the images at these positions alone, in this order."""
        return LibraryImages(self._names, self._read_one, self._version, self.items[items])

    def read(self, item: int) -> bytes:
        """Return an image as the bytes of a file; raises OSError where the library cannot read it."""
        try:
            return self._read_one(int(self.items[item]))
        except (ValueError, SyntaxError) as error:  # Pillow's of a damaged file
            raise OSError(str(error)) from error

    def state(self, item: int) -> str:
        """Return a text that another content would not have."""
        return f"{self._version} {self.items[item]}"


def is_clutter(name: str) -> bool:
    """Say whether a file or folder is none of the user's, such as `.DS_Store` or `._cat.jpg`."""
    return name.startswith(".") or name.lower() in CLUTTER


def split_of_folder(name: str) -> str | None:
    """Return "train", "validation" or "test" for a folder named for a split, such as `Training` or `test_set`."""
    match = _SPLIT.fullmatch(name)
    return match and {"train": "train", "test": "test"}.get(match[1].lower(), "validation")


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, and links to folders, sorted.

    Raises:
        UserError: it cannot be read.
    """
    with reading(folder):
        return sorted(path for path in folder.iterdir() if not is_clutter(path.name) and path.is_dir())


def pictures_below(folder: Path, suffixes: tuple[str, ...] = tuple(SUFFIXES)) -> tuple[list[Path], list[Path]]:
    """Return the images, by their suffixes, and the other files of a folder and the folders in it, sorted.

    Links to folders are followed, but for those that lead back to a folder that was passed already.

    Raises:
        UserError: a folder cannot be read.
    """
    real = folder.resolve()
    with reading(folder):
        files = sorted(_files_below(folder, {real, *real.parents}))
    pictures = [path for path in files if path.name.lower().endswith(suffixes)]
    return pictures, [path for path in files if not path.name.lower().endswith(suffixes)]


def _files_below(folder: Path, passed: set[Path]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted((entry for entry in entries if not is_clutter(entry.name)), key=lambda entry: entry.name)
    for entry in found:
        path = Path(entry.path)
        if not entry.is_dir():
            yield path
            continue
        real = path.resolve() if entry.is_symlink() else path
        if real not in passed:
            passed.add(real)
            yield from _files_below(path, passed)


def named_pattern(key: str, expression: str | None) -> re.Pattern[str] | None:
    """Return an option of a source, a regular expression whose first group is found in names; None where it is null.

    Raises:
        UserError: it is no regular expression, or has no group.
    """
    if expression is None:
        return None
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError(f"data.source.{key}={expression} is no regular expression: {error}.") from error
    if not pattern.groups:
        raise UserError(rf"data.source.{key}={expression} needs a group in brackets, for example ^(.+)_\d+.")
    return pattern
