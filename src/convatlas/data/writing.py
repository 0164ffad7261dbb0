"""Writing a prepared data set: arrays or shards of each split, and the card.

The new folder is written beside the old one under another name and takes its place only when it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from convatlas.core.errors import UserError
from convatlas.core.files import write_json
from convatlas.data.card import CARD_FILE, Card, fingerprint
from convatlas.data.decoding import BadImageError, Decoded, decode, encode
from convatlas.data.edges import canny_edges, edge_targets
from convatlas.data.examination import in_parallel
from convatlas.data.image_files import ImageFiles
from convatlas.data.prepared import NAMES_FILE, array_file, hash_file
from convatlas.data.raw import RawDataset
from convatlas.data.shards import write_shards
from convatlas.data.spool import Items, chunks
from convatlas.data.squares import shrink, size_in_shards

__all__ = ["Encoder", "beside", "decode_again", "write"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encodes images in files for shards, as files where that loses nothing: plain ones that are small enough.

    Attributes:
        images: the files.
        channels: 1 or 3.
        shorter_side: what is larger is made smaller; None keeps all sizes.
        sizes: `(N, 2)` height and width of each.
        plain: `(N,)` whether a file can be stored as it is.
    """

    images: ImageFiles
    channels: int
    shorter_side: int | None
    sizes: Items
    plain: NDArray[np.bool_]

    def __call__(self, item: int) -> tuple[bytes, int, int]:
        """Return the bytes, the height and the width of an image as it is stored."""
        height, width = self.sizes[item].tolist()
        size = size_in_shards(height, width, self.shorter_side)
        if self.plain[item] and size == (height, width):
            return _read_again(self.images, item), height, width
        found = decode_again(self.images, item, self.channels)
        return encode(shrink(found.pixels, size), found.lossy), *size


def decode_again(images: ImageFiles, item: int, channels: int) -> Decoded:
    """Decode a file that the verification has decoded before.

    Raises:
        UserError: it has changed since.
    """
    try:
        return decode(_read_again(images, item), channels)
    except BadImageError as error:
        raise _changed(images, item, str(error)) from error


def _read_again(images: ImageFiles, item: int) -> bytes:
    try:
        return images.read(item)
    except OSError as error:
        raise _changed(images, item, error.strerror or str(error)) from error


def _changed(images: ImageFiles, item: int, reason: str) -> UserError:
    return UserError(
        f"{images.paths[item]} was readable a moment ago and is not any more ({reason}); "
        "leave the raw files alone while they are prepared, and start again."
    )


# ---- the folder -----------------------------------------------------------------------------------------------------


def write(folder: Path, raw: RawDataset, parts: dict[str, Items], card: Card, encoder: Encoder | None = None) -> Card:
    """Write the arrays or shards and the card, replacing what is there; return the card with the hashes of the files.

    Args:
        folder: `data.prepared`.
        raw: the items that are used, as they are stored.
        parts: positions in `raw` of each split's items.
        card: without hashes.
        encoder: for images in files.

    Raises:
        UserError: the folder cannot be written.
    """
    target = folder.resolve()
    new, old = beside(target, "new"), beside(target, "old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(beside(target, "lock")):
            _clear_leftovers(target, new, old)
            try:
                card = _write_folder(new, raw, parts, card, encoder)
                _replace(target, new, old)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}. What was there before is unchanged; "
            "make room or correct data.prepared, then try again."
        ) from error
    return card


def beside(folder: Path, state: str) -> Path:
    """Return the hidden path beside a prepared folder that holds a state of its preparation."""
    return folder.resolve().with_name(f".{folder.resolve().name}.{state}")


def _clear_leftovers(target: Path, new: Path, old: Path) -> None:
    """Tidy up behind a preparation that was killed; one killed between its two renames left the old folder aside."""
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _replace(target: Path, new: Path, old: Path) -> None:
    """Put `new` in the place of `target`. A folder cannot be renamed onto another, so the old one steps aside first."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_folder(folder: Path, raw: RawDataset, parts: dict[str, Items], card: Card, encoder: Encoder | None) -> Card:
    folder.mkdir()
    files = []
    for split, items in parts.items():
        if encoder is not None:
            files += write_shards(folder, split, in_parallel(encoder, items, f"writing {split}"))
        for array, shape, some in _arrays(raw.take(items)):
            path = folder / array_file(split, array)
            _save(path, shape, some)
            files.append(path)
    hashes = {path.name: hash_file(path) for path in sorted(files)}
    card = card.model_copy(update={"files": hashes, "fingerprint": fingerprint(hashes)})
    if raw.names is not None:
        names = {split: [raw.names[i] for i in items] for split, items in parts.items() if split != "train"}
        write_json(folder / NAMES_FILE, names)
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")
    return card


def _arrays(raw: RawDataset) -> Iterator[tuple[str, tuple[int, ...], Iterable[NDArray[Any]]]]:
    """Yield names, see `convatlas.data.prepared`, shapes and rows of the arrays of one split."""
    values: dict[str, Any] = {"images": None if isinstance(raw.images, ImageFiles) else raw.images}
    values["labels"] = raw.labels
    if raw.boxes is not None and raw.box_labels is not None:
        values["boxes"] = np.concatenate([np.zeros((0, 4), dtype=np.float32), *raw.boxes])
        values["box_labels"] = np.concatenate([np.zeros(0, dtype=np.int64), *raw.box_labels])
        values["box_offsets"] = np.cumsum([0, *(len(boxes) for boxes in raw.boxes)], dtype=np.int64)
    values |= {"masks": raw.masks, "spacing": raw.spacing, "groups": raw.groups}
    for name, array in values.items():
        if array is not None:
            yield name, array.shape, chunks(array)
    if raw.masks is not None:
        yield "canny", raw.masks.shape, map(canny_edges, chunks(raw.pixels))
        yield "edges", raw.masks.shape, map(edge_targets, chunks(raw.masks))


def _save(path: Path, shape: tuple[int, ...], some: Iterable[NDArray[Any]]) -> None:
    """Write an array as `numpy.save` does, some rows at a time."""
    with path.open("wb") as file:
        for number, rows in enumerate(some):
            if not number:
                header = {"descr": dtype_to_descr(rows.dtype), "fortran_order": False, "shape": shape}
                write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)
