"""Pictures in folders that are named for their classes: anybody's own data, and The Simpsons' characters.

    root/<class>/**/<picture>                                                 the test split is cut from it
    root/train/<class>/**/<picture>   root/test/<class>/**/<picture>          the test split is given
    root/<train>/<class>/...          root/<test>/<class>_<number>.jpg        its classes stand in the files' names

Pictures of any size and of every format that Pillow reads. They stay in their files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convatlas.core.errors import UserError, near_matches
from convatlas.data.archives import printable, reading
from convatlas.data.fetching import require_root
from convatlas.data.image_files import ImageFiles
from convatlas.data.sources import RawDataset

__all__ = ["ClassFolders", "class_folders", "load", "pictures_below"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}
"""What operating systems leave behind; like names that start with a dot, it is passed over without a word."""
VALIDATION_FOLDERS = ("val", "valid", "validation")


@dataclass
class ClassFolders:
    """Pictures with their classes.

    Attributes:
        classes: names of the folders, sorted.
        paths: of the pictures, sorted by class and name.
        labels: of each picture, its position in `classes`.
        left_out: `(name, reason)` of files that are no pictures by their names.
    """

    classes: list[str]
    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def load(
    root: Path,
    *,
    train: str | None = None,
    test: str | None = None,
    test_pattern: str | None = None,
    group_pattern: str | None = None,
    title: str = "Pictures in class folders",
    origin: str = "picture files",
    licence: str = "not stated",
    notes: Sequence[str] = (),
    instructions: str = "Put a folder of pictures for each class there, or set data.root.",
) -> RawDataset:
    """List the pictures and their classes; none is opened yet.

    Without a test folder, `val` is the test split; with one, `val` joins `train`, and `data.split.validation` cuts
    validation anew from both.

    Args:
        root: see the head of this file.
        train: the folder of class folders below `root`; null takes `train` if it holds folders, otherwise `root`.
        test: the folder of test pictures below `root`; null takes `test`, or else `val`, if `train` was found by null.
        test_pattern: a regular expression whose first group, found in the name of a test picture, is its class; null
            takes class folders.
        group_pattern: a regular expression whose first group, found in a picture's path below `root`, is what belongs
            together, such as an episode or a person; null takes each picture for itself.
        title: for the data card, like the next three.
        origin: who made the pictures.
        licence: on which terms.
        notes: what a reader of the results has to know.
        instructions: how to get the pictures, for the message when they are not there.

    Raises:
        UserError: a folder is missing, a class has no pictures, a test class has no training folder, or a pattern is
            no regular expression with a group.
    """
    require_root(root)
    label_pattern = _pattern("test_pattern", test_pattern)
    grouping = _pattern("group_pattern", group_pattern)
    training_folder = _training_folder(root, train, title, instructions)
    found = class_folders(training_folder, root)
    training = len(found.paths)
    remarks = list(notes)
    test_folder, joined = _other_folders(root, test, search=train is None and training_folder != root)
    if joined is not None:
        _add_class_folders(found, joined, root)
        training = len(found.paths)
        remarks.append(f"The folder {joined.name} is joined with {training_folder.name}; validation is cut from both.")
    if test_folder is not None:
        if label_pattern is None:
            _add_class_folders(found, test_folder, root)
        else:
            _add_named_files(found, test_folder, root, label_pattern)
        if len(found.paths) == training:
            raise UserError(f"{title}: {printable(test_folder)} holds no picture that can be used for the test.")
        remarks.append(f"The folder {test_folder.name} is the test split.")
    names = [_name(path, root) for path in found.paths]
    raw = RawDataset(
        images=ImageFiles(found.paths),
        classes=found.classes,
        title=title,
        origin=origin,
        licence=licence,
        made=False,
        labels=np.array(found.labels, dtype=np.int64),
        names=names,
        left_out=found.left_out,
        official_split=None if test_folder is None else np.repeat(["train", "test"], [training, len(names) - training]),
        notes=remarks,
    )
    return raw if grouping is None else _grouped(raw, names, grouping)


# ---- folders --------------------------------------------------------------------------------------------------------


def class_folders(folder: Path, root: Path) -> ClassFolders:
    """List the pictures of each class folder.

    Args:
        folder: that holds the class folders.
        root: names in the result are relative to it.

    Raises:
        UserError: there are fewer than two class folders, one has no picture, or one cannot be read.
    """
    with reading(folder):
        folders = sorted(path for path in folder.iterdir() if not _is_clutter(path.name) and path.is_dir())
        loose = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    if len(folders) < 2:
        found = f"{len(folders)} class folder{'' if len(folders) == 1 else 's'} and {loose} loose pictures"
        raise UserError(
            f"{printable(folder)} holds {found}; put the pictures of each class, two classes or more, into a folder "
            "named for the class."
        )
    listed = ClassFolders([printable(path.name) for path in folders])
    for label, path in enumerate(folders):
        if not _add_folder(listed, path, root, label):
            raise UserError(
                f"{printable(path)} holds no picture ({', '.join(sorted(SUFFIXES))}); put some there or remove the "
                "folder."
            )
    return listed


def pictures_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures, by their names, and the other files of a folder and the folders in it, sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    files = []
    with reading(folder):
        for parent, inner, names in os.walk(folder, onerror=_raise):
            inner[:] = [name for name in inner if not _is_clutter(name)]
            files += [Path(parent, name) for name in names if not _is_clutter(name)]
    files.sort()
    return [path for path in files if path.suffix.lower() in SUFFIXES], [
        path for path in files if path.suffix.lower() not in SUFFIXES
    ]


def _raise(error: OSError) -> None:
    raise error


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in CLUTTER


def _training_folder(root: Path, train: str | None, title: str, instructions: str) -> Path:
    folder = root if train is None else root / train
    if train is None and any(path.is_dir() for path in (root / "train").glob("*")):  # a class may be called train, too
        folder = root / "train"
    if not folder.is_dir():
        raise UserError(f"{title}: there is no folder {folder}. {instructions}")
    return _inner(folder)


def _inner(folder: Path) -> Path:
    """Step into a folder of the same name, which unpacking an archive often leaves: a/a/<class>."""
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _other_folders(root: Path, test: str | None, search: bool) -> tuple[Path | None, Path | None]:
    """Find the folder of the test pictures, and one of validation pictures that joins the training.

    Without `search`, there is none but the test folder that is named.
    """
    if test is not None:
        if not (root / test).is_dir():
            raise UserError(
                f"there is no folder {root / test} with the test pictures; put it there, or set data.source.test=null "
                "and data.split.test=0.2."
            )
        return _inner(root / test), None
    if not search:
        return None, None
    validation = next((root / name for name in VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if (root / "test").is_dir():
        return root / "test", validation
    return validation, None


def _add_folder(listed: ClassFolders, folder: Path, root: Path, label: int) -> int:
    """Add the pictures of one class and return how many there are."""
    pictures, others = pictures_below(folder)
    listed.paths += pictures
    listed.labels += [label] * len(pictures)
    listed.left_out += [(_name(path, root), "its name does not end as that of a picture") for path in others]
    return len(pictures)


def _add_class_folders(listed: ClassFolders, folder: Path, root: Path) -> None:
    """Add the pictures of another folder of class folders; a class may be missing there, but not be a new one."""
    with reading(folder):
        folders = sorted(path for path in folder.iterdir() if not _is_clutter(path.name) and path.is_dir())
    for path in folders:
        name = printable(path.name)
        if name not in listed.classes:
            raise UserError(
                f"{printable(path)} is of a class without training pictures. {near_matches(name, listed.classes)} "
                "Rename or remove the folder."
            )
        _add_folder(listed, path, root, listed.classes.index(name))


def _add_named_files(listed: ClassFolders, folder: Path, root: Path, pattern: re.Pattern[str]) -> None:
    """Add test pictures whose names say their classes; those of no known class are left out and counted."""
    pictures, others = pictures_below(folder)
    listed.left_out += [(_name(path, root), "its name does not end as that of a picture") for path in others]
    for path in pictures:
        match = pattern.search(path.name)
        name = printable(match.group(1) or "") if match else ""
        if match is None:
            listed.left_out.append(
                (_name(path, root), f"its name does not fit data.source.test_pattern={pattern.pattern}")
            )
        elif name not in listed.classes:
            listed.left_out.append((_name(path, root), f"its name says the class {name}, which has no training folder"))
        else:
            listed.paths.append(path)
            listed.labels.append(listed.classes.index(name))


def _name(path: Path, root: Path) -> str:
    return printable(path.relative_to(root))


# ---- patterns -------------------------------------------------------------------------------------------------------


def _pattern(key: str, expression: str | None) -> re.Pattern[str] | None:
    if expression is None:
        return None
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise UserError(f"data.source.{key}={expression} is no regular expression: {error}.") from error
    if not pattern.groups:
        raise UserError(rf"data.source.{key}={expression} needs a group in brackets, for example ^(.+)_\d+.")
    return pattern


def _grouped(raw: RawDataset, names: list[str], pattern: re.Pattern[str]) -> RawDataset:
    """Number the groups that the names say, and leave out what the pattern does not fit."""
    found = [pattern.search(name) for name in names]
    kept = np.flatnonzero([match is not None for match in found])
    reason = f"its path does not fit data.source.group_pattern={pattern.pattern}"
    raw.left_out += [(name, reason) for name, match in zip(names, found, strict=True) if match is None]
    if not len(kept):
        raise UserError(f"data.source.group_pattern={pattern.pattern} fits no path, such as {names[0]}; correct it.")
    raw = raw.take(kept)
    raw.groups = np.unique([match.group(1) or "" for match in found if match], return_inverse=True)[1].astype(np.int64)
    return raw
