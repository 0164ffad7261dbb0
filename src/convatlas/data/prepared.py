"""Reading a prepared data set: memory-mapped arrays, or shards of encoded images, and their data card.

A folder `data/prepared/<name>/` holds for each split S of train, validation and test:

| file | task | content |
|---|---|---|
| S_images.npy | all, of `data.storage=arrays` | `(N, C, H, W)` uint8 |
| S_images_00000.arrow, ... | all, of `data.storage=shards` | encoded images, see `convatlas.data.shards` |
| S_labels.npy | classification | `(N,)` int64 |
| S_boxes.npy | detection | `(M, 4)` float32, `x1, y1, x2, y2` in pixels of the stored image |
| S_box_labels.npy | detection | `(M,)` int64, from 1 |
| S_box_offsets.npy | detection | `(N + 1,)` int64: image i has the boxes `offsets[i]` to `offsets[i + 1]` |
| S_masks.npy | segmentation | `(N, H, W)` uint8 |
| S_canny.npy | segmentation | `(N, H, W)` uint8, 0 or 1: edges in the image, see `convatlas.data.edges` |
| S_edges.npy | segmentation | `(N, H, W)` uint8, 0 or 1: the band along the edges of the classes |
| S_spacing.npy | where it is known | `(N, 2)` float32: millimetres from row to row and from column to column |
| S_groups.npy | all, where there are groups | `(N,)` int64 |

and `dataset.json`, see `convatlas.data.card`, and `names.json`. Imports here stay few: every training process waits for
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convatlas.core.config import DataConfig
from convatlas.core.errors import UserError
from convatlas.data.card import CARD_FILE, Card, fingerprint, remedy
from convatlas.data.shards import ShardedImages, shard_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ARRAYS", "NAMES_FILE", "PreparedData", "Split", "array_file", "hash_file"]

NAMES_FILE = "names.json"
"""The names of the images of validation and test in the source; they decide nothing of a result."""
ARRAYS: dict[str, tuple[type[np.generic], str]] = {
    "images": (np.uint8, "N C H W"),
    "labels": (np.int64, "N"),
    "box_offsets": (np.int64, "N+1"),
    "boxes": (np.float32, "M 4"),
    "box_labels": (np.int64, "M"),
    "masks": (np.uint8, "N H W"),
    "canny": (np.uint8, "N H W"),
    "edges": (np.uint8, "N H W"),
    "spacing": (np.float32, "N 2"),
    "groups": (np.int64, "N"),
}
"""The arrays that a split may have: type and shape, as in the table above; `box_offsets` ends with M."""

VERIFIED_BYTES = 1 << 26
"""A data set of at most so many is compared with its hashes whenever it is opened."""


@dataclass(frozen=True, eq=False)
class Split:
    """The images and annotations of one split, memory-mapped and read-only; shapes as in the table above.

    Sent to another process it takes the folder's name along, not the images.
    """

    folder: Path
    name: str
    card: Card
    images: NDArray[np.uint8] | ShardedImages
    labels: NDArray[np.int64] | None = None
    boxes: NDArray[np.float32] | None = None
    box_labels: NDArray[np.int64] | None = None
    box_offsets: NDArray[np.int64] | None = None
    masks: NDArray[np.uint8] | None = None
    canny: NDArray[np.uint8] | None = None
    edges: NDArray[np.uint8] | None = None
    spacing: NDArray[np.float32] | None = None
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self) -> tuple[Callable[..., Split], tuple[Path, str, Card]]:
        return open_split, (self.folder, self.name, self.card)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A prepared data set."""

    folder: Path
    card: Card
    splits: dict[str, Split]

    @classmethod
    def open(cls, folder: Path, verify: bool | None = None) -> PreparedData:
        """Open a data set.

        Args:
            folder: where `python -m convatlas.prepare` wrote it.
            verify: compare every file with its sha256 as well, which reads all of it; None does so where that takes
                no more than a second.

        Raises:
            UserError: something is missing, cut short, or not what the card says; it names the file.
        """
        card = Card.read(folder)
        if fingerprint(card.files) != card.fingerprint:
            raise UserError(
                f"{folder / CARD_FILE} was changed: its fingerprint does not belong to its files. {remedy(card.name)}"
            )
        splits = {name: open_split(folder, name, card) for name in card.counts}
        if verify is None:
            verify = sum((folder / name).stat().st_size for name in card.files) <= VERIFIED_BYTES
        if verify:
            _verify_hashes(folder, card)
        return cls(folder, card, splits)

    @classmethod
    def open_for(cls, config: DataConfig) -> PreparedData:
        """Open the data set that a configuration names, and check that it is the one meant.

        Raises:
            UserError: it is not prepared, or not as the configuration says.
        """
        if not (config.prepared / CARD_FILE).exists():
            raise UserError(
                f"data={config.name} is not prepared: {config.prepared} has no {CARD_FILE}. {remedy(config.name)}"
            )
        prepared = cls.open(config.prepared)
        prepared.card.check(config)
        return prepared

    def with_files(self, rows: pd.DataFrame, split: str) -> pd.DataFrame:
        """Return rows with the names of their images in the source, by the column `index`, where it has names."""
        try:
            names = json.loads((self.folder / NAMES_FILE).read_text(encoding="utf-8"))[split]
            if len(names) == len(self.splits[split]):
                return rows.assign(file=[str(names[index]) for index in rows["index"]])
        except (OSError, ValueError, LookupError, TypeError):  # names that are not there cost no run
            pass
        return rows

    def split(self, name: str) -> Split:
        """Return the split "train", "validation" or "test", or several as one, such as "train+validation"."""
        return self.splits.get(name) or open_split(self.folder, name, self.card)


def open_split(folder: Path, name: str, card: Card) -> Split:
    """Open the arrays of one split; see `PreparedData.open` and, for several as one, `PreparedData.split`."""
    if "+" in name:
        return _joined(folder, name, card)
    arrays: dict[str, Any] = {}
    for array, (dtype, letters) in ARRAYS.items():
        path = folder / array_file(name, array)
        if path.name in card.files:
            arrays[array] = _open_array(path, dtype, card)
            expected = _shape(letters, card, name, arrays)
            if arrays[array].shape != expected:
                raise UserError(f"{path} has shape {arrays[array].shape}, not {expected}. {remedy(card.name)}")
    if not arrays.keys() & {"labels", "boxes", "masks"}:
        raise UserError(f"{folder / CARD_FILE} lists no labels, boxes or masks for {name}. {remedy(card.name)}")
    if card.storage == "shards":
        arrays["images"] = _open_shards(folder, name, card)
    return Split(folder, name, card, **arrays)


def _joined(folder: Path, name: str, card: Card) -> Split:
    """Open several splits as one; arrays are copied into memory, shards stay mapped."""
    splits = [open_split(folder, part, card) for part in name.split("+")]
    found = {array: [getattr(split, array) for split in splits] for array in ARRAYS}
    arrays: dict[str, Any] = {
        array: np.concatenate(parts) for array, parts in found.items() if isinstance(parts[0], np.ndarray)
    }
    if "box_offsets" in arrays:
        counts = np.concatenate([np.diff(offsets) for offsets in found["box_offsets"]])
        arrays["box_offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if card.storage == "shards":
        arrays["images"] = ShardedImages([path for split in splits for path in _shards(folder, split.name, card)])
    return Split(folder, name, card, **arrays)


def array_file(split: str, array: str) -> str:
    """Return the file name of an array."""
    return f"{split}_{array}.npy"


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_shards(folder: Path, split: str, card: Card) -> ShardedImages:
    try:
        images = ShardedImages(_shards(folder, split, card))
    except ValueError as error:
        raise UserError(f"{error}. {remedy(card.name)}") from error
    if len(images) != card.counts[split].images:
        raise UserError(
            f"{folder}: the shards of the {split} split hold {len(images)} images, not {card.counts[split].images}. "
            f"{remedy(card.name)}"
        )
    return images


def _shards(folder: Path, split: str, card: Card) -> list[Path]:
    names = [shard_file(split, number) for number in range(len(card.files))]
    return [folder / name for name in names if name in card.files]


def _open_array(path: Path, dtype: type[np.generic], card: Card) -> NDArray[Any]:
    try:
        # A plain view of the map: numpy's memmap class costs time at every slice.
        array = np.asarray(_map(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. {remedy(card.name)}") from error
    except PermissionError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}). {remedy(card.name)}") from error
    if array.dtype != dtype:
        raise UserError(f"{path} holds {array.dtype}, not {np.dtype(dtype)}. {remedy(card.name)}")
    return array


def _map(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _shape(letters: str, card: Card, split: str, arrays: dict[str, NDArray[Any]]) -> tuple[int, ...]:
    """Return the shape that an array must have."""
    images = card.counts[split].images
    offsets = arrays.get("box_offsets")
    sizes: dict[str, Any] = dict(zip("CHW", card.image_shape, strict=True))  # None only in shards, which have no arrays
    sizes |= {"N": images, "N+1": images + 1, "M": 0 if offsets is None or not offsets.size else int(offsets[-1])}
    return tuple(sizes[letter] if letter in sizes else int(letter) for letter in letters.split())


def _verify_hashes(folder: Path, card: Card) -> None:
    for name, expected in card.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing. {remedy(card.name)}")
        if hash_file(path) != expected:
            raise UserError(
                f"{path} is not the file that was prepared: its sha256 differs from dataset.json. {remedy(card.name)}"
            )
