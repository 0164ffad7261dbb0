"""Classification sets as the library `datasets` reads them: a folder, Parquet files, or a name on the Hugging Face hub.

    data=hugging_face data.source.path=my_parquet_folder
    data=hugging_face data.source.path=uoft-cs/cifar10

The column of images and that of labels are found by their types and names, or named. No code of a data set is run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convatlas.core.errors import UserError
from convatlas.core.extras import load_extra
from convatlas.data.image_files import LibraryImages, split_of_folder
from convatlas.data.raw import RawDataset

__all__ = ["load"]

LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "y")


def load(
    root: Path,
    *,
    path: str,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    title: str | None = None,
    licence: str | None = None,
) -> RawDataset:
    """Read a set; a picture is decoded when it is asked for.

    Splits are known by their usual names. Without a test split, validation is the test; with one, validation joins the
    training.

    Args:
        root: where the library keeps what it downloads or converts.
        path: a folder with pictures, Parquet, CSV or JSON files, one such file, or a name on the hub.
        config: which of the set's configurations, where it has several.
        image_column: name of the column; null takes the one that holds images.
        label_column: name of the column; null takes the one that holds class labels, or has a usual name.
        title: for the data card, as the next; null takes what the set says of itself.
        licence: on which terms.

    Raises:
        UserError: the library is not installed, the set cannot be reached or read, has no images, or a column is not
            clear.
    """
    library = load_extra("datasets", "hugging_face", "data=hugging_face")
    splits = _read(library, path, config, root)
    parts = _in_order(splits, path)
    first = parts[0][1]
    images = _image_column(library, first, image_column, path)
    labels = _label_column(library, first, label_column, path)
    numbers, classes = _numbers([part for _, part in parts], labels, path)
    pictures = [part.cast_column(images, library.Image(decode=False)).select_columns([images]) for _, part in parts]
    counts = [len(part) for part in pictures]
    ends = np.cumsum(counts)
    names = [
        f"{split}/{number:06d}" for (split, _), count in zip(parts, counts, strict=True) for number in range(count)
    ]

    def read_one(item: int) -> bytes:
        part = int(np.searchsorted(ends, item, side="right"))
        return _bytes(pictures[part][item - int(ends[part]) + counts[part]][images])

    in_test = np.array([split == "test" for (split, _), count in zip(parts, counts, strict=True) for _ in range(count)])
    info = first.info
    return RawDataset(
        images=LibraryImages(names, read_one, " ".join(part._fingerprint for part in pictures)),
        classes=classes,
        title=title or f"{Path(path).name}, read by Hugging Face's datasets",
        origin=(info.homepage or "").strip() or path,
        licence=licence or (info.license or "").strip() or "not stated",
        made=False,
        labels=numbers,
        names=names,
        official_split=np.where(in_test, "test", "train") if in_test.any() and not in_test.all() else None,
        notes=[f"The column {images} has the images, {labels} the labels."],
    )


def _read(library: Any, path: str, config: str | None, root: Path) -> Mapping[str, Any]:
    """Let the library read a set, from the disk or from the hub.

    Raises:
        UserError: it cannot.
    """
    there = Path(path)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns at each try, and the last error says why
    try:
        if there.is_file():
            kind = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}.get(there.suffix.lower())
            if kind is None:
                raise UserError(f"data.source.path={path} is no Parquet, CSV or JSON file; name one, or its folder.")
            found = library.load_dataset(kind, data_files=str(there), cache_dir=str(root))
        elif there.is_dir() and (there / "dataset_dict.json").is_file():
            found = library.load_from_disk(str(there))
        else:
            found = library.load_dataset(path, config, cache_dir=str(root))
    except UserError:
        raise
    except Exception as error:  # the library's own, and those of Arrow, of HTTP and of the file system behind it
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        hint = (
            "correct its files, or name data.source.config"
            if there.exists()
            else "correct the name, or get its files on another machine and set data.source.path to their folder"
        )
        raise UserError(f"data.source.path={path} cannot be read or reached ({reason}); {hint}.") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _in_order(splits: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    """Return the parts of a set that are used as "train" or "test"; raises UserError where there is no image."""
    kinds = {name: split_of_folder(name) for name, part in splits.items() if len(part)}
    if not kinds:
        raise UserError(f"data.source.path={path} holds no images; name another folder or set.")
    has_test, has_training = "test" in kinds.values(), "train" in kinds.values()
    as_test = "test" if has_test else "validation" if has_training else None
    named = [(("test" if kind == as_test and kind else "train"), splits[name]) for name, kind in kinds.items()]
    return sorted(named, key=lambda each: each[0] == "test")


def _image_column(library: Any, part: Any, column: str | None, path: str) -> str:
    found = [name for name, kind in part.features.items() if isinstance(kind, library.Image)]
    return _one_of(column, found, part, "image_column", path)


def _label_column(library: Any, part: Any, column: str | None, path: str) -> str:
    found = [name for name, kind in part.features.items() if isinstance(kind, library.ClassLabel)]
    return _one_of(column, found or [name for name in LABEL_NAMES if name in part.features], part, "label_column", path)


def _one_of(column: str | None, found: Sequence[str], part: Any, key: str, path: str) -> str:
    """Return the column that is named, or the only one that may be meant."""
    known = ", ".join(part.column_names)
    if column is not None and column not in part.column_names:
        raise UserError(f"data.source.{key}={column}: {path} has no such column; it has {known}.")
    if column is None and len(found) != 1:
        which = f"{len(found)} columns may be meant ({', '.join(found)})" if found else "no column is clearly meant"
        raise UserError(f"{path}: {which}; set data.source.{key} to one of {known}.")
    return column or found[0]


def _numbers(parts: Sequence[Any], column: str, path: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[str]]:
    """Return the class numbers of all images and the names of the classes; other labels than numbers are sorted."""
    kind = parts[0].features[column]
    values = [value for part in parts for value in part[column]]
    if hasattr(kind, "names"):
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), list(kind.names)
    if not all(isinstance(value, str | int | None) for value in values):
        raise UserError(f"data.source.label_column={column}: {path} has no class for each image there; name another.")
    known = sorted({value for value in values if value is not None})
    number = {value: position for position, value in enumerate(known)}
    return np.array([number.get(value, -1) for value in values], dtype=np.int64), [str(value) for value in known]


def _bytes(cell: Any) -> bytes:
    """Return the file of an image, which the library keeps as bytes or by its path."""
    if isinstance(cell, dict) and cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    if isinstance(cell, dict) and cell.get("path"):
        return Path(cell["path"]).read_bytes()
    raise ValueError("the cell holds no image")
