"""Pictures whose classes stand in a CSV file: a column of classes, or one column of 0 and 1 for each class.

    root/labels.csv       file,label              or      image,cat,dog
    root/images/...       a.jpg,cat                       a.jpg,1,0

Pictures are found below `images/` or `root`; a name in the table may lack its ending. They stay in their files.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from convatlas.core.errors import UserError
from convatlas.data.archives import printable, read_text
from convatlas.data.fetching import require_root
from convatlas.data.image_files import SUFFIXES, ImageFiles, pictures_below, split_of_folder
from convatlas.data.raw import RawDataset
from convatlas.data.sources.boxes import leaves_folder
from convatlas.data.sources.slices import require_folder

__all__ = ["load"]

TITLE = "Pictures with classes in a CSV file"
FILES = ("file", "filename", "file_name", "image", "image_id", "image_path", "path", "picture", "id")
LABELS = ("label", "class", "class_name", "target", "category", "species", "diagnosis")
SPLITS = ("split", "set", "subset", "fold")
ONE, NOUGHT = ("1", "1.0"), ("0", "0.0", "")


def load(
    root: Path,
    *,
    file: str = "labels.csv",
    images: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    title: str = TITLE,
    origin: str = "picture files",
    licence: str = "not stated",
) -> RawDataset:
    """List the pictures and their classes, which are sorted by name; none is opened yet.

    Args:
        root: see the head of this file.
        file: the table below `root`, its columns parted by commas, semicolons or tabs.
        images: the folder of the pictures below `root`; null finds `images`, or takes `root`.
        file_column: null takes the first column with a name of `FILES`, or the first of all.
        label_column: null takes the first column with a name of `LABELS`; where there is none, all other columns are
            classes, and each row has 1 in one of them.
        split_column: tells the official test split by a usual name, such as train and test; null takes the first
            column with a name of `SPLITS`, if there is one that does. Other splits than the test are trained on.
        title: for the data card, as the next two.
        origin: who made the pictures.
        licence: on which terms.

    Raises:
        UserError: a file, folder or column is missing, or no row can be used.
    """
    require_root(root)
    require_folder(root, title, f"Put {file} and the pictures there, or set data.root.")
    path = root / file
    columns, rows = _table(path)
    files = _column(columns, file_column, FILES, "file_column", path) or columns[0]
    labels = _column(columns, label_column, LABELS, "label_column", path)
    splits = _column(columns, split_column, SPLITS, "split_column", path)
    classes = [name for name in columns if name not in (files, labels, splits)] if labels is None else []
    if labels is None and len(classes) < 2:
        raise UserError(f"{path}: no column has the classes; set data.source.label_column to one of {columns}.")
    folder = root / images if images else root / "images" if (root / "images").is_dir() else root
    if not folder.is_dir():
        raise UserError(f"data.source.images={images}: there is no folder {folder}; correct it.")
    known = _known(folder)
    left_out: list[tuple[str, str]] = []
    found: dict[str, tuple[Path, str, bool]] = {}
    for number, row in enumerate(rows, start=2):
        name = (row.get(files) or "").strip()
        label = _one_hot(row, classes) if labels is None else (row.get(labels) or "").strip()
        reason = _complaint(name, label, known, found, one_hot=labels is None)
        if reason:
            left_out.append((printable(name) or f"{file}, line {number}", reason))
        else:
            in_test = splits is not None and split_of_folder((row.get(splits) or "").strip()) == "test"
            found[name] = (known[name], label, in_test)
    if not found:
        which, reason = left_out[0] if left_out else (file, "it has no rows")
        raise UserError(
            f"{title}: no row of {path} can be used; {which}: {reason}; correct the table, or data.source.images."
        )
    taken = {picture for picture, _, _ in found.values()}
    others = sorted({picture for picture in known.values() if picture not in taken})
    left_out += [(printable(picture.relative_to(root)), f"{file} does not name it") for picture in others]
    names = classes or sorted({label for _, label, _ in found.values()})
    tested = np.array([test for _, _, test in found.values()])
    return RawDataset(
        images=ImageFiles([picture for picture, _, _ in found.values()]),
        classes=names,
        title=title,
        origin=origin,
        licence=licence,
        made=False,
        labels=np.array([names.index(label) for _, label, _ in found.values()], dtype=np.int64),
        names=[printable(name) for name in found],
        left_out=left_out,
        official_split=np.where(tested, "test", "train") if tested.any() and not tested.all() else None,
    )


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the table; raises UserError where it is missing, empty, or two columns have one name."""
    text = read_text(path)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [(name or "").strip() for name in reader.fieldnames or []]
    if len(columns) < 2 or len(set(columns)) < len(columns) or "" in columns:
        raise UserError(f"{path}: its first line must name two columns or more, each once; it is {first.strip()!r}.")
    reader.fieldnames = columns
    return columns, list(reader)


def _column(columns: Sequence[str], given: str | None, usual: Sequence[str], key: str, path: Path) -> str | None:
    if given is not None and given not in columns:
        raise UserError(f"data.source.{key}={given}: {path} has no such column; it has {', '.join(columns)}.")
    return given or next((name for name in columns if name.lower() in usual), None)


def _known(folder: Path) -> dict[str, Path]:
    """Return the pictures by each name that a table may call them: their path below the folder, and without ending."""
    pictures = pictures_below(folder)[0]
    without = [path.relative_to(folder).with_suffix("").as_posix() for path in pictures]
    once = Counter(without)
    known = {name: path for name, path in zip(without, pictures, strict=True) if once[name] == 1}
    return known | {path.relative_to(folder).as_posix(): path for path in pictures}


def _one_hot(row: Mapping[str, str | None], classes: Sequence[str]) -> str:
    """Return the class whose column has the only 1, or "" where there is no such."""
    values = {name: (row.get(name) or "").strip() for name in classes}
    ones = [name for name, value in values.items() if value in ONE]
    return ones[0] if len(ones) == 1 and all(value in (*ONE, *NOUGHT) for value in values.values()) else ""


def _complaint(name: str, label: str, known: Mapping[str, Path], found: Mapping[str, object], *, one_hot: bool) -> str:
    """Return why a row cannot be used, or ""."""
    if not name:
        return "it names no picture"
    if leaves_folder(name):
        return "its name leads out of the folder"
    if not label:
        return "it has not 1 in one column of the classes and 0 in the others" if one_hot else "it has no class"
    if name not in known:
        return f"there is no such picture ({', '.join(sorted(SUFFIXES))})"
    return "the table names it twice" if name in found else ""
