"""Images in folders that are named for their classes: anybody's own data, and The Simpsons' characters.

    root/<class>/**/<image>                                             the test split is cut from it
    root/train/<class>/**/<image>     root/test/<class>/**/<image>      the test split is given
    root/<train>/<class>/...          root/<test>/<class>_<number>.jpg  its classes stand in the files' names

Folders of splits are known by their usual names in any case: `Training`, `test_set`, `Val`. Images may have any size
and any format of `convatlas.data.image_files.SUFFIXES`. They stay in their files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convatlas.core.errors import UserError, near_matches
from convatlas.data.archives import printable, reading
from convatlas.data.fetching import require_root
from convatlas.data.image_files import (
    SUFFIXES,
    ImageFiles,
    folders_in,
    is_clutter,
    named_pattern,
    pictures_below,
    split_of_folder,
)
from convatlas.data.raw import RawDataset

__all__ = ["ClassFolders", "class_folders", "load"]

NO_IMAGE = "its name does not end as that of a picture"


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
    validation anew from both. Everything below `root` is used or listed.

    Args:
        root: see the head of this file.
        train: the folder of class folders below `root`, "." for `root` itself; null takes a folder that is named for
            the training, unless it is a class among others, and otherwise `root`.
        test: the folder of test images below `root`; null takes one that is named for the test, or else for the
            validation, if `train` was found by null.
        test_pattern: a regular expression whose first group, found in the name of a test picture, is its class; null
            takes class folders.
        group_pattern: a regular expression whose first group, found in a picture's path below `root`, is what belongs
            together, such as an episode or a patient; null takes each picture for itself.
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
    label_pattern = named_pattern("test_pattern", test_pattern)
    grouping = named_pattern("group_pattern", group_pattern)
    folders = _split_folders(root, train, test, title, instructions)
    found = class_folders(folders.train, root, certain=train is not None, skip=folders.test)
    training = len(found.paths)
    remarks = list(notes)
    if folders.joined is not None:
        _add_class_folders(found, folders.joined, root, "validation")
        training = len(found.paths)
        remarks.append(
            f"The folder {folders.joined.name} is joined with {folders.train.name}; validation is cut from both."
        )
    if folders.test is not None:
        if label_pattern is None:
            _add_class_folders(found, folders.test, root, "test")
        else:
            _add_named_files(found, folders.test, root, label_pattern)
        if len(found.paths) == training:
            raise UserError(f"{title}: {printable(folders.test)} holds no picture that can be used for the test.")
        remarks.append(f"The folder {folders.test.name} is the test split.")
    for folder in folders.unused:
        found.left_out.append((f"{_name(folder, root)}/", "the folder is of no split"))
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
        official_split=np.repeat(["train", "test"], [training, len(names) - training]) if folders.test else None,
        notes=remarks,
    )
    return raw if grouping is None else _grouped(raw, names, grouping)


# ---- folders --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Splits:
    """The folders of class folders of each split: `joined` is added to `train`, `unused` ones are listed."""

    train: Path
    test: Path | None = None
    joined: Path | None = None
    unused: tuple[Path, ...] = ()


def _split_folders(root: Path, train: str | None, test: str | None, title: str, instructions: str) -> _Splits:
    """Find the folders of the splits.

    Raises:
        UserError: a folder that is named is missing, or two are named for one split.
    """
    for folder in (root, root if train is None else root / train):
        if not folder.is_dir():
            raise UserError(f"{title}: there is no folder {folder}. {instructions}")
    if test is not None and not (root / test).is_dir():
        raise UserError(
            f"there is no folder {root / test} with the test pictures; put it there, or set data.source.test=null "
            "and data.split.test=0.2."
        )
    given = None if test is None else _inner(root / test)
    if train is not None:
        return _Splits(_inner(root / train), given)
    base = _inner(root)
    named: dict[str | None, list[Path]] = {}
    for folder in folders_in(base):
        named.setdefault(split_of_folder(folder.name), []).append(folder)
    if "train" not in named or not _is_above_classes(named, named["train"][0]):
        return _Splits(base, given)
    if given is not None:
        taken = {named["train"][0], given, given.parent}
        return _Splits(_inner(named["train"][0]), given, None, tuple(f for f in folders_in(base) if f not in taken))
    for split, folders in named.items():
        if split is not None and len(folders) > 1:
            names = " and ".join(printable(folder.name) for folder in folders)
            raise UserError(
                f"{printable(base)} holds {names}, both named for the {split} split; set data.source.train and "
                "data.source.test, or rename one."
            )
    first = {split: _inner(folders[0]) for split, folders in named.items()}
    validation = first.get("validation")
    unused = tuple(named.get(None, ()))
    if "test" in first:
        return _Splits(first["train"], first["test"], validation, unused)
    return _Splits(first["train"], validation, None, unused)


def _is_above_classes(named: dict[str | None, list[Path]], train: Path) -> bool:
    """Say whether a folder named for the training holds the classes; it may be a class itself, of trains."""
    classes = {path.name for path in folders_in(_inner(train))}
    if not classes:
        return False
    others = [path for split in ("test", "validation") for path in named.get(split, ())]
    if any(classes & {path.name for path in folders_in(_inner(other))} for other in others):
        return True
    return not any(pictures_below(path)[0] for path in named.get(None, ()))


def _inner(folder: Path) -> Path:
    """Step into a folder of the same name, which unpacking an archive often leaves, if nothing else is there: a/a."""
    with reading(folder):
        inside = [path for path in folder.iterdir() if not is_clutter(path.name)]
    return inside[0] if len(inside) == 1 and inside[0].name == folder.name and inside[0].is_dir() else folder


def class_folders(folder: Path, root: Path, certain: bool = True, skip: Path | None = None) -> ClassFolders:
    """List the images of each class folder.

    Args:
        folder: that holds the class folders.
        root: names in the result are relative to it.
        certain: whether the user named the folder; otherwise its folders may be something else than classes.
        skip: a folder that is no class.

    Raises:
        UserError: there are fewer than two class folders, one has no image or cannot be read, or they seem to be
            folders above those of the classes.
    """
    folders = [path for path in folders_in(folder) if skip is None or path not in {skip, skip.parent}]
    beside = _files_in(folder)
    if len(folders) < 2:
        loose = sum(path.suffix.lower() in SUFFIXES for path in beside)
        found = f"{len(folders)} class folder{'' if len(folders) == 1 else 's'} and {loose} loose pictures"
        raise UserError(
            f"{printable(folder)} holds {found}; put the pictures of each class, two classes or more, into a folder "
            f"named for the class.{_further_down(folders, root)}"
        )
    listed = ClassFolders([printable(path.name) for path in folders])
    listed.left_out += [(_name(path, root), "it lies beside the class folders") for path in beside]
    for label, path in enumerate(folders):
        if not _add_folder(listed, path, root, label):
            raise UserError(
                f"{printable(path)} holds no picture ({', '.join(sorted(SUFFIXES))}); put some there or remove the "
                "folder."
            )
    if not certain:
        _check_level(listed, folder, folders)
    return listed


def _further_down(folders: Sequence[Path], root: Path) -> str:
    """Return which option to set where the folders of classes seem to lie in the only folder there is."""
    inside = folders_in(folders[0]) if len(folders) == 1 else []
    if len(inside) < 2:
        return ""
    names, within = ", ".join(printable(path.name) for path in inside[:5]), printable(folders[0].relative_to(root))
    option = f"data.source.train={within}" if "/" in within else f"data.root={printable(folders[0])}"
    return f" If {names} in {within} are meant, set {option}."


def _files_in(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(path for path in folder.iterdir() if not is_clutter(path.name) and not path.is_dir())


def _check_level(listed: ClassFolders, folder: Path, folders: Sequence[Path]) -> None:
    """Refuse what may be folders above the classes: no image lies in one of them directly, and they hold several."""
    above = [path for path in folders if len(folders_in(path)) > 1]
    if above and not any(path.parent in folders for path in listed.paths):
        names = [printable(path.name) for path in above]
        inside = ", ".join(printable(path.name) for path in folders_in(above[0])[:5])
        both = " and data.source.test to the other folder" if len(names) > 1 else ""
        raise UserError(
            f"{printable(folder)}: the folder {names[0]} holds no picture but folders ({inside}). If these are the "
            f"classes, set data.source.train={names[0]}{both}; if {names[0]} is a class, set data.source.train=."
        )


def _add_folder(listed: ClassFolders, folder: Path, root: Path, label: int) -> int:
    """Add the images of one class and return how many there are."""
    pictures, others = pictures_below(folder)
    listed.paths += pictures
    listed.labels += [label] * len(pictures)
    listed.left_out += [(_name(path, root), NO_IMAGE) for path in others]
    return len(pictures)


def _add_class_folders(listed: ClassFolders, folder: Path, root: Path, split: str) -> None:
    """Add the images of another folder of class folders; a class may be missing there, but not be a new one."""
    folders = folders_in(folder)
    names = [printable(path.name) for path in folders]
    if not names:
        raise UserError(
            f"{printable(folder)}, taken for the {split}, holds no folders of classes, such as {listed.classes[0]}/: "
            "put its pictures into such folders, set data.source.test_pattern, which finds the class in a file's name, "
            "or move the folder away. If it is itself a class, set data.source.train=."
        )
    listed.left_out += [(_name(path, root), "it lies beside the class folders") for path in _files_in(folder)]
    for name, path in zip(names, folders, strict=True):
        if name not in listed.classes:
            raise UserError(
                f"{printable(path)} is of a class without training pictures. {near_matches(name, listed.classes)} "
                "Rename or remove the folder."
            )
        _add_folder(listed, path, root, listed.classes.index(name))


def _add_named_files(listed: ClassFolders, folder: Path, root: Path, pattern: re.Pattern[str]) -> None:
    """Add test pictures whose names say their classes; those of no known class are left out and counted."""
    pictures, others = pictures_below(folder)
    listed.left_out += [(_name(path, root), NO_IMAGE) for path in others]
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
